"""Sinks for results: COCO JSON, JSON Lines, NumPy archives, overlays and videos."""
