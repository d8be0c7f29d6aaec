"""How fast a graph could run on a device at most, and the share of that which was reached."""
