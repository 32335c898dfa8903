"""An image on its way through a shard: what is known of it grows from step to step."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

import numpy as np

from msinn_core.coding import Latents, Symbols
from msinn_core.picture import Picture
from msinn_core.prediction import Curves
from pipeline.archive.shard import stored_bytes
from pipeline.encode.tasks import ImageTask
from pipeline.formats import images
from pipeline.formats.outcome import Coded, Kept, Outcome, Reason
from pipeline.forms.avif import AVIF
from pipeline.forms.base import Stored
from pipeline.forms.msinn import MSINN
from pipeline.forms.near import NEAR
from pipeline.plan.curves import DRAWN


class SidecarFile(NamedTuple):
    """A sidecar that was fetched.

    Attributes:
        name: Its original name; `restore_name`: what restore calls it.
        member: What it is called in the shard, unless that is taken.
        mtime: Its modification time, where it is known.
        data: Its bytes.
    """

    name: str
    restore_name: str
    member: str
    mtime: datetime | None
    data: bytes


class Measured(NamedTuple):
    """What an image's bytes decode to.

    Attributes:
        mse: In 8-bit code values; `ms_ssim` is None unless asked for.
        recon_sha256: Of the decoded samples.
        walked: The samples are of the encoder's own walk: the bytes were compared with its symbols, and not walked through again.
    """

    mse: float
    ms_ssim: float | None
    recon_sha256: str
    walked: bool


class Near(NamedTuple):
    """What a near-lossless payload is made of.

    Attributes:
        writer: Library and version of its JPEG XL part.
        bitstream: The network's part; empty if it has none.
    """

    writer: str
    bitstream: bytes


@dataclass
class Item:
    """An image on its way through the shard.

    Attributes:
        task: What the plan wants of it.
        source: The file; None if it could not be read, or once the image is written.
        loaded: What the decoder of image files made of it.
        outcome: What becomes of it, as far as is known.
        latents: Of the network, while it may be coded at another q.
        on_checker: The device's memory does not suffice for it, or the device failed: the CPU codes it.
        encoder: What coded it last, for the manifest.
        symbols: At the q last tried, and `data`, their bitstream; `measured` is what that decodes to, None until it was measured.
        curves: What an analysis predicts, once a device has predicted it.
        near: Of a near-lossless payload, which is `data` then: its parts.
        tried: Of a picture that AVIF codes: its files, by quality. `carried`: what travels with each of them (`avif.carried_with`). `writer`:
            library and version.
        q: Rate index of `data`, once the symbols are released.
        clamp: `none`, `floor` or `cap`, as in the manifest.
        stored: The exact form that the shard will hold in place of the file, for an image that is not coded. `settled`: it was looked for.
        exact_bytes: About what that takes, where an analysis asked; `exact_form` is its name.
        sidecars: Those that could be read; `lost` has a sentence for each of the others, and for the image's own file.
    """

    task: ImageTask
    source: bytes | None
    loaded: images.LoadedImage
    outcome: Outcome = field(default_factory=Coded)
    fetch_ms: float = 0.0
    decode_ms: float = 0.0
    model_ms: float = 0.0
    entropy_ms: float = 0.0
    verify_ms: float = 0.0
    latents: Latents | None = None
    on_checker: bool = False
    encoder: str | None = None
    symbols: Symbols | None = None
    data: bytes | None = None
    measured: Measured | None = None
    curves: Curves | None = None
    near: Near | None = None
    tried: dict[int, bytes] = field(default_factory=dict)
    carried: dict[str, bytes] | None = None
    writer: str | None = None
    q: float | None = None
    clamp: str = "none"
    stored: Stored | None = None
    settled: bool = False
    exact_bytes: int | None = None
    exact_form: str | None = None
    sidecars: list[SidecarFile] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    @property
    def reason(self) -> Reason | None:
        """Why it is not coded; None if it is."""
        return self.outcome.reason

    @property
    def coded(self) -> bool:
        """Whether its pixels are coded, as far as is known."""
        return isinstance(self.outcome, Coded)

    @property
    def drawn(self) -> bool:
        """Whether AVIF codes it, if anything does."""
        return self.task.model == DRAWN

    @property
    def payload(self) -> bytes | None:
        """What the shard will hold of it; None if nothing."""
        if self.coded:
            return self.data
        return self.source if self.stored is None else self.stored.data

    @property
    def codec(self) -> str | None:
        """What decodes the payload, as the manifest has it; None if there is none."""
        if self.payload is None:
            return None
        if self.coded:
            return NEAR.codec if self.near is not None else AVIF.codec if self.drawn else MSINN.codec
        return "kept" if self.stored is None else self.stored.codec

    @property
    def payload_bytes(self) -> int:
        """Bytes that the payload takes in the shard."""
        return 0 if self.payload is None else stored_bytes(len(self.payload))

    @property
    def least_bytes(self) -> int:
        """Bytes that it takes in the shard in the end: an image that outgrows its file, or its exact form, will be kept as that."""
        return int(min([self.most_bytes, *([] if self.payload is None else [stored_bytes(len(self.payload))])]))

    @property
    def most_bytes(self) -> float:
        """Bytes that it takes in the shard if it is not coded: its exact form's, where the plan may choose that, or its file's."""
        return min(np.inf if self.source is None else stored_bytes(len(self.source)), self.task.exact_bytes)

    @property
    def sidecar_bytes(self) -> int:
        """Bytes that its sidecars take in the shard."""
        return sum(stored_bytes(len(side.data)) for side in self.sidecars)

    def keep_if_larger(self) -> None:
        """Keep the file, or its exact form, if the bitstream takes no less of the shard."""
        if not self.coded or self.source is None or stored_bytes(len(self.data or b"")) < self.most_bytes:
            return
        if self.most_bytes < stored_bytes(len(self.source)):
            self.outcome = Kept(Reason.PLANNED, "an exact form is not larger than the coded picture")
        else:
            self.outcome = Kept(Reason.NOT_SMALLER, "the original file is not larger than the coded one")

    def release(self) -> None:
        """Let go of pixels, latents and symbols, once it is done: those of a whole shard would be gigabytes."""
        self.q = self.symbols.q if self.symbols is not None else self.q
        self.symbols = self.latents = None
        self.tried, self.carried = {}, None
        if (picture := self.loaded.picture) is not None:
            self.loaded = replace(self.loaded, picture=replace(picture, pixels=picture.pixels[:1, :1].copy(), alpha=None))


def ms_since(started: float) -> float:
    """Milliseconds since a reading of `time.perf_counter`."""
    return (time.perf_counter() - started) * 1e3


def same_alpha(decoded: Picture, original: Picture) -> bool:
    """Whether a decoded picture has its original's alpha."""
    if decoded.alpha is None or original.alpha is None:
        return decoded.alpha is original.alpha
    return np.array_equal(decoded.alpha, original.alpha)
