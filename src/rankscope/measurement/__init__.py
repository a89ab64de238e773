"""Updates -> a table: one row a matrix, from files or from a model in training."""
