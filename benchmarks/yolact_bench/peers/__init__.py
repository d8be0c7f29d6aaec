"""Other implementations as candidates: each is imported only if it is asked for."""
