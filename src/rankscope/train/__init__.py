"""K trials, one frozen base: data, packed layers, injection into a Hugging Face model, and the
loop."""
