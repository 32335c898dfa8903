"""Forms in which an image is stored: what each gives back, and how."""
