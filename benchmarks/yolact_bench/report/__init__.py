"""A report of measurements as tables, as a page, and the schema of its JSON."""
