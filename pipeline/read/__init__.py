"""Everything that reads an archive."""
