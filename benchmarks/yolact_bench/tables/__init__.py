"""The tables of docs/measurements.md, each with the commands that measure it."""
