"""The original implementation: its order of work restated, and checkouts of it in processes of their own."""
