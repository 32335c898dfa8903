"""Datasets in, archives out: sources, rate allocation, commits, workers, restore, verify, audit. Knows no command line."""
