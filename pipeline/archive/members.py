"""Names of what a shard holds: payloads in their forms, files that are kept as they are, and sidecars."""

from __future__ import annotations

import re

from pipeline.forms.family import SUFFIXES


def suffix_of(name: str) -> str:
    """What the member of a file that is kept as it is ends with."""
    base = name.rpartition("/")[2]
    suffix = re.sub(r"[^A-Za-z0-9]", "", base.rpartition(".")[2])[:16] if "." in base else ""
    # `.msn` is what coded pictures are called.
    return suffix.lower() if suffix and suffix.lower() != "msn" else "bin"


def payload_suffix(codec: str, name: str) -> str:
    """What the member of a payload ends with, after its key and a dot.

    Args:
        codec: See `Row.codec`.
        name: Of the source file.
    """
    if codec == "zstd":
        return f"{suffix_of(name)}.{SUFFIXES[codec]}"
    return SUFFIXES.get(codec) or suffix_of(name)


def codec_named(member: str, key: str) -> str:
    """The codec that a member of this key is of, by its ending: `kept` for all that are no form of ours."""
    ending = member.removeprefix(f"{key}.")
    found = next((codec for codec, suffix in SUFFIXES.items() if ending == suffix), None)
    return found or ("zstd" if ending.count(".") == 1 and ending.endswith(f".{SUFFIXES['zstd']}") else "kept")


def member_name(key: str, name: str) -> str:
    """What a sidecar is called in the shard, unless that is taken."""
    base = name.rpartition("/")[2]
    suffix = re.sub(r"[^A-Za-z0-9._-]", "_", base.partition(".")[2])[:60].strip(".")
    return f"{key}.{suffix or 'side'}"
