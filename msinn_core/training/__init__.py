"""Training and what it borrows from compressai. Nothing here is imported by the archiving path."""
