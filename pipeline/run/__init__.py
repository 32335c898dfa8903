"""One `msinn compress`."""
