"""Names of what a shard holds beside coded pictures: files that are kept as they are, and sidecars."""

from __future__ import annotations

import re


def suffix_of(name: str) -> str:
    """What the member of a file that is kept as it is ends with."""
    base = name.rpartition("/")[2]
    suffix = re.sub(r"[^A-Za-z0-9]", "", base.rpartition(".")[2])[:16] if "." in base else ""
    # `.msn` is what coded pictures are called.
    return suffix.lower() if suffix and suffix.lower() != "msn" else "bin"


def member_name(key: str, name: str) -> str:
    """What a sidecar is called in the shard, unless that is taken."""
    base = name.rpartition("/")[2]
    suffix = re.sub(r"[^A-Za-z0-9._-]", "_", base.partition(".")[2])[:60].strip(".")
    return f"{key}.{suffix or 'side'}"
