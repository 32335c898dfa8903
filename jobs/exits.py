"""Exit codes; the README's table explains them."""

from __future__ import annotations

EXIT_USAGE, EXIT_SOME_FAILED, EXIT_BUDGET, EXIT_VERIFY, EXIT_INFRASTRUCTURE, EXIT_INTERRUPTED = 2, 3, 4, 5, 6, 130
EXIT_PIPE = 141
