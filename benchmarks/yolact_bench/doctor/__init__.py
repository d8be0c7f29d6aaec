"""`yolact-doctor`: what a machine has, and whether each part of the project works on it."""
