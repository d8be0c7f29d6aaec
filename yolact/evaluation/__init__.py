"""Box and mask AP, curves, confusion matrix and the report."""
