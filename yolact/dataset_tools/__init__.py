"""Check, show, convert and generate datasets."""
