"""`python -m jobs`: the command line where `msinn` is not on the PATH."""

from jobs.cli import entry

entry()
