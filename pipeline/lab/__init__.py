"""Measuring and making models."""
