"""An image on its way through a shard."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime

from msinn_core.codec import Latents, Symbols
from pipeline.encode.tasks import ImageTask
from pipeline.formats import images
from pipeline.formats.outcome import Coded, Outcome, Reason


@dataclass
class Item:
    """An image on its way through the shard."""

    task: ImageTask
    source: bytes | None
    loaded: images.LoadedImage
    fetch_ms: float
    decode_ms: float
    model_ms: float = 0.0
    entropy_ms: float = 0.0
    verify_ms: float = 0.0
    outcome: Outcome = field(default_factory=Coded)
    latents: Latents | None = None
    on_checker: bool = False
    symbols: Symbols | None = None
    data: bytes | None = None
    mse: float = 0.0
    ms_ssim: float | None = None
    recon_sha256: str | None = None
    q: float | None = None
    clamp: str = "none"
    sidecars: list[tuple[str, str, str, datetime | None, bytes]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    @property
    def reason(self) -> Reason | None:
        return self.outcome.reason

    @property
    def coded(self) -> bool:
        return isinstance(self.outcome, Coded)

    @property
    def payload(self) -> bytes | None:
        return self.data if self.coded else self.source


def released(item: Item) -> Item:
    """An image that is done, without what took its memory: the pixels and symbols of a whole shard would be gigabytes."""
    item.q = item.symbols.q if item.symbols is not None else None
    item.symbols = item.latents = None
    if item.loaded.picture is not None:
        picture = item.loaded.picture
        item.loaded = replace(item.loaded, picture=replace(picture, pixels=picture.pixels[:1, :1].copy(), alpha=None))
    return item
