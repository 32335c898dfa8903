"""Text from outside: names, messages and addresses as people may see them."""

from __future__ import annotations

import re
from urllib.parse import unquote

# Controls, which move cursors and set titles and clipboards; marks that turn the direction of writing; separators of lines; lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_BETWEEN_LINES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: object) -> str:
    """One line of text that a terminal shows as it is: whatever would act on it, line ends included, is written as an escape."""
    return _UNPRINTABLE.sub(_escape, str(text))


def shown_lines(text: str) -> str:
    """As `shown`, for text of several lines and columns."""
    return _BETWEEN_LINES.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


# A user and a password before the host; a password may hold slashes, and a port is none.
_USER = re.compile(r"(?<=://)(?:[^/?#\s]+@|[^/\s@:]+:(?!\d+(?:/|$))[^\s@]*@)")
_ADDRESS = re.compile(r"(https?://[^\s?#'\"<>]*)([?#][^\s'\"<>]+)", re.I)
_SECRET_WORD = re.compile(
    r"sig(?:nature)?$|sig[-_]|signature|token|secret|passw|pwd|passphrase|credential|key(?!word)|auth|jwt|^code$|policy|cookie", re.I
)
MASK = "***"


def redacted(text: str) -> str:
    """Text with the secrets of its addresses masked: users and passwords before an `@`, and queries of web addresses that sign a request.

    Names of files on disk and of objects on stores, which may hold a question mark, stay as they are.

    >>> redacted("cannot read https://me:word@host/x")
    'cannot read https://***@host/x'
    """
    if "://" not in text:
        return text
    return _ADDRESS.sub(lambda found: f"{found[1]}{found[2][0]}{MASK}" if _signs(found[2][1:]) else found[0], _USER.sub(f"{MASK}@", text))


def without_secrets(address: str) -> str:
    """A web address without the query that signs it, as a name for what lies there; any other address as it is."""
    found = _ADDRESS.fullmatch(address)
    return found[1] if found is not None and _signs(found[2][1:]) else address


def _signs(query: str) -> bool:
    return any(_SECRET_WORD.search(unquote(part.partition("=")[0])) for part in re.split(r"[&;?#]", query))
