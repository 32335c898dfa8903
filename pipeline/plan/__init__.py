"""Which rate for which image."""
