"""The integer profile: one archive, the same pixels on every machine (INTEGER.md)."""
