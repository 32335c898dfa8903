"""Settings of stores that an address does not say: end points, credentials, profiles. They are kept in memory by address, and written nowhere.

Whoever opens a store says them once, for all that is opened below that address from then on; `Placement` gives them to the workers that it starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_KNOWN: dict[str, dict[str, Any]] = {}
_MAGIC = "*?["


def use_options(address: str, options: Mapping[str, Any] | None) -> None:
    """Open what lies at an address, or below it, with these settings: fsspec's `storage_options`. None or none changes nothing.

    Args:
        address: A URL, which may be a glob: then what stands before its first free part.
        options: For example `{"endpoint_url": "https://...", "key": "...", "secret": "..."}`, as the protocol's library takes them.
    """
    if options:
        _KNOWN[_place(address)] = dict(options)


def options_of(address: str) -> dict[str, Any]:
    """Settings for what lies at an address; of several the ones of the nearest folder above it, and none where nobody said any."""
    place = _place(address)
    above = [root for root in _KNOWN if place == root or place.startswith(f"{root}/")]
    return dict(_KNOWN[max(above, key=len)]) if above else {}


def known() -> dict[str, dict[str, Any]]:
    """All that were said, by address."""
    return {address: dict(options) for address, options in _KNOWN.items()}


def equipped(options: Mapping[str, Mapping[str, Any]], factory: Callable[..., Any], *args: Any) -> Any:
    """What a worker holds, made where these settings are known too."""
    for address, found in options.items():
        use_options(address, found)
    return factory(*args)


def _place(address: str) -> str:
    free = min((address.find(mark) for mark in _MAGIC if mark in address), default=len(address))
    return (address if free == len(address) else address[:free].rpartition("/")[0]).rstrip("/")
