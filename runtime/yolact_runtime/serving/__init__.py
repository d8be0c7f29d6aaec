"""What a Triton server runs: an image in, instances out."""
