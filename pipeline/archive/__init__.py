"""What lies in the store, and its protocol."""
