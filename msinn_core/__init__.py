"""The MSINN codec: tensors and bytes in, tensors and bytes out. No Ray, no fsspec, no environment, no clock."""
