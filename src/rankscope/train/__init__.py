"""Trains one pack, K trials over one frozen base: data, packed layers and the training loop."""
