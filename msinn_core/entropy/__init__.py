"""Entropy coding: integer CDF tables stored with the model, rANS over contiguous arrays."""
