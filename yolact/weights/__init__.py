"""Checkpoints: download, open, initialize."""
