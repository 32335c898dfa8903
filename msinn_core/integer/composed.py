"""What a backend may do at once, step by step: what lies between the steps is as large as the picture, and moving it costs more than computing it."""

from __future__ import annotations

from typing import Any


class Composed:
    """Part of every backend; see `backend.Backend`."""

    def narrowed(self: Any, shift: Any, *parts: Any) -> Any:
        whole = parts[0] if len(parts) == 1 else self.joined(*parts)
        return self.narrow(whole if whole.shape[-1] == len(shift) else self.channels(whole, 0, len(shift)), shift)

    def residual(self: Any, x: Any, first: Any, skip: Any, second: Any, last: Any = None) -> Any:
        hidden = self.conv(self.conv(x, first), second, add=self.conv(x, skip))
        return hidden if last is None else self.conv(hidden, last)

    def gathered(self: Any, x: Any, shift: Any) -> Any:
        return self.narrow(self.unshuffled(x), shift)

    def filtered(self: Any, x: Any, correction: Any, shift: int) -> Any:
        return self.corrected(x, self.shuffled(correction), shift)
