"""What to run and what has run: the plan, the store, and the execution that joins them. No torch."""
