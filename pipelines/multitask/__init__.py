"""Multi-task experiments: interactions and negatives in, an evaluation of every task out."""
