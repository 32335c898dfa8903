"""The MSINN codec: tensors and bytes in, tensors and bytes out. No Ray, no fsspec, no environment, no clock."""

VERSION = "0.1.0"
"""Of msinn as a whole; also where it runs without being installed, as its code does that travels to a cluster."""
