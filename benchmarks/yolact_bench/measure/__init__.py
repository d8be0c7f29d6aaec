"""How times are taken: candidates in turns, statistics, and what the machine did."""
