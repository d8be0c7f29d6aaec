"""Sinks that write a file, or a few, for each image into a folder."""
