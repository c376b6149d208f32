"""Training: the loop, the steps and the two phases of a search."""
