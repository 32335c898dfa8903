"""Values on the command line that several verbs take."""

from __future__ import annotations

import argparse

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def size(text: str) -> float:
    """Bytes from `500000`, `500k`, `1.5G`, `2Gi`."""
    number = text.rstrip("kKMGTiB")
    unit = text[len(number) :].removesuffix("B")
    unit = "k" if unit == "K" else unit
    if unit not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 500000, 500k, 1.5G or 2Gi")
    try:
        return float(number) * _UNITS[unit]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 500000, 500k, 1.5G or 2Gi") from error
