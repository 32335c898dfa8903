"""The closed family of forms, by name and by what decodes them."""

from __future__ import annotations

from pipeline.forms.avif import AVIF
from pipeline.forms.base import Decodes, Exact, Form
from pipeline.forms.jpeg_exact import JpegExact
from pipeline.forms.kept import Kept
from pipeline.forms.msinn import MSINN
from pipeline.forms.near import NEAR
from pipeline.forms.pixels_exact import PixelsExact

EXACT_FORMS: tuple[Form, ...] = (JpegExact(), PixelsExact(), Kept())
"""Those that need no model."""

NAMES = (MSINN.name, NEAR.name, AVIF.name, *(form.name for form in EXACT_FORMS))

SUFFIXES = {"msinn": "msn", "near": "png.msr", "avif": "png.avif", "jxl-jpeg": "jpg.jxl", "lepton": "jpg.lep", "jxl": "png.jxl", "zstd": "zst"}
"""What the member of a shard is called after its key, by codec. A file in Zstandard has its own ending before that; a kept one its own alone, which
never has a dot."""

WITH_LOSS = (MSINN.codec, NEAR.codec, AVIF.codec)
"""Codecs of the forms that lose something. Pictures of 8 bits come back of both."""

_BY_CODEC = {codec: form for form in EXACT_FORMS for codec in form.codecs}
_DECODERS: dict[str, Decodes] = {**_BY_CODEC, AVIF.codec: AVIF}


def form_named(name: str) -> Form:
    """An exact form by its name. Raises `KeyError`."""
    return next(form for form in EXACT_FORMS if form.name == name)


def form_of(codec: str) -> Form | None:
    """The exact form that a codec of the manifest belongs to; None for those that lose something, and for a word that is no codec."""
    return _BY_CODEC.get(codec)


def decoder_of(codec: str) -> Decodes | None:
    """What decodes payloads of a codec without a model; None for others, and for a word that is no codec."""
    return _DECODERS.get(codec)


def promise_of(codec: str | None) -> tuple[str | None, Exact | None]:
    """Name and promise of the form that a codec of the manifest belongs to."""
    for with_loss in (MSINN, NEAR, AVIF):
        if codec == with_loss.codec:
            return with_loss.name, with_loss.exact
    form = form_of(codec or "")
    return (None, None) if form is None else (form.name, form.exact)
