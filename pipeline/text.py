"""Text from outside: names, messages and addresses as people may see them."""

from __future__ import annotations

import re

# Controls, which move cursors and set titles and clipboards; marks that turn the direction of writing; separators of lines; lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_BETWEEN_LINES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: object) -> str:
    """One line of text that a terminal shows as it is: whatever would act on it, line ends included, is written as an escape."""
    return _UNPRINTABLE.sub(_escape, str(text))


def shown_lines(text: str) -> str:
    """As `shown`, for text of several lines and columns."""
    return _BETWEEN_LINES.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


_USER = re.compile(r"(?<=://)[^/?#\s]+@")
_QUERY = re.compile(r"(?<![\s?])\?[^\s?#'\"]*")
_SECRET = re.compile(r"[?&;](?:[^=&;]*[-_])?(?:signature|sig|token|secret|password|passwd|pwd|credentials?|key|(?:access)?key-?id|auth|code)=", re.I)
MASK = "***"


def redacted(text: str) -> str:
    """Text with the secrets of its addresses masked: users and passwords before an `@`, and queries that sign a request."""
    if "://" not in text and "?" not in text:
        return text
    text = _USER.sub(f"{MASK}@", text)
    return _QUERY.sub(lambda found: f"?{MASK}" if _SECRET.search(found[0]) else found[0], text)


def without_secrets(address: str) -> str:
    """An address without the query that signs it, as a name for what lies there; any other as it is."""
    head, mark, query = address.partition("?")
    return head if mark and _SECRET.search(f"?{query}") else address
