"""What becomes of an image: coded, kept as the file it is, or missing something; and the reasons, one word for each, as the manifest has them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class Reason(StrEnum):
    """Why an image is not coded, or what of it is missing."""

    NOT_AN_IMAGE = "not_an_image"
    BROKEN = "broken_image"
    PIXEL_LIMIT = "pixel_limit"
    DEEP = "more_than_8_bits"
    ANIMATED = "animated"
    PALETTE_ALPHA = "palette_with_transparency"
    MODE = "unsupported_mode"
    UNSUPPORTED = "unsupported_format"
    TRAILING = "data_after_the_image"
    NOT_SMALLER = "not_smaller"
    METADATA_LIMIT = "metadata_limit"
    UNCARRIED = "metadata_not_carried"
    SECOND_IMAGE = "second_image"
    CRASHED = "crashed_the_worker"
    DECODE_LIMIT = "decode_limit"
    UNREADABLE = "source_unreadable"
    SIDECAR = "sidecar_unreadable"
    CODEC_FAILED = "codec_failed"
    QUALITY_UNREACHABLE = "quality_unreachable"
    LOSSLESS = "lossless_asked_for"
    PLANNED = "lossless_planned"

    @classmethod
    def named(cls, text: str | None) -> Reason:
        """The reason in a manifest or an analysis; of one that this version does not know, that the file was kept is all that matters."""
        try:
            return cls(text or "")
        except ValueError:
            return cls.NOT_SMALLER

    @property
    def missing(self) -> bool:
        """Something of the image is not in the archive: its status is `failed`."""
        return self in (Reason.UNREADABLE, Reason.SIDECAR)

    @property
    def undecodable(self) -> bool:
        """The file is kept byte for byte, and somebody should look at it: exit code 3, though nothing is missing. Of its pixels nothing is known for
        sure: they buy no bytes."""
        return self in (Reason.BROKEN, Reason.PIXEL_LIMIT, Reason.DECODE_LIMIT, Reason.CRASHED, Reason.CODEC_FAILED)

    @property
    def troubles(self) -> bool:
        """It ends a run with exit code 3."""
        return self.missing or self.undecodable


@dataclass(frozen=True, slots=True)
class Coded:
    """Nothing is lost but what the rate took."""

    status: ClassVar[str] = "coded"
    reason: ClassVar[None] = None
    message: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class Kept:
    """The file itself is stored."""

    reason: Reason
    message: str | None = None
    status: ClassVar[str] = "kept"


@dataclass(frozen=True, slots=True)
class Missing:
    """Something could not be read and is not in the archive."""

    reason: Reason
    message: str | None = None
    status: ClassVar[str] = "failed"


Outcome = Coded | Kept | Missing
