"""What has run: one folder a trial, and the log of who trains what. No torch."""
