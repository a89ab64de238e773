"""What to run: the study file, its tasks and trials, packs, and their cost. No torch."""
