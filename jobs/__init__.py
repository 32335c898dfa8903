"""The command line: flags to a frozen dataclass, one call, an exit code."""
