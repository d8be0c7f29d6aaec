"""Other implementations as contenders: each is imported only when it is asked for."""
