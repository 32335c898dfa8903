"""Members of an archive's shards as others read them: decoders for WebDataset and for Hugging Face `datasets`, which read the tars as they are."""

from __future__ import annotations

import os
import threading
from typing import Any

from PIL import Image

from msinn_core import bitstream, pillow
from msinn_core.model_file import parse_model
from pipeline.archive.archive import Archive
from pipeline.archive.layout import sha256
from pipeline.archive.members import codec_named
from pipeline.archive.row import Row
from pipeline.errors import ManifestError
from pipeline.formats import images
from pipeline.forms import jxl, near
from pipeline.forms.family import WITH_LOSS
from pipeline.forms.msinn import MSINN
from pipeline.forms.near import NEAR
from pipeline.limits import DEFAULT, Limits
from pipeline.read.decoder import Decoder

HUGGING_FACE_ENDINGS = ("msn", "jxl", "lep", "msr")


class MemberDecoder:
    """Decodes what a shard holds, by the ending of its name. Works in the processes of a loader, and in several threads.

    As a handler of WebDataset it gives an image for each member in a form of ours, and leaves all others (kept files, sidecars) to the next one:

    >>> import glob, webdataset
    >>> shards = webdataset.WebDataset(sorted(glob.glob("archive/shards/*.tar")), shardshuffle=False)
    >>> decoded = shards.decode(MemberDecoder("archive"), "pil")
    >>> sorted({sample["msn"].mode for sample in decoded if "msn" in sample})
    ['RGB']

    Args:
        url: The archive, whose models decode `.msn`.
        limits: What is decoded at most.
    """

    def __init__(self, url: str, limits: Limits = DEFAULT) -> None:
        self.url = Archive(url).store.url
        self.limits = limits
        self._opened: tuple[int, Archive, Decoder, threading.Lock] | None = None

    def __call__(self, key: str, data: bytes) -> Image.Image | None:
        """The image of a member: `key` is its ending, with the dot, as WebDataset gives it; None for what is in no form of ours.

        Raises:
            ManifestError: It is damaged, over the limits, or its library is not installed here.
            CodecError: It does not decode.
        """
        found = self.file(key, data)
        if found is None:
            return None
        try:
            return images.opened(found)
        except OSError:  # of a file that is no image, kept in Zstandard, the bytes are what there is
            return None

    def file(self, ending: str, data: bytes) -> bytes | None:
        """The file that a restore would write of a member; None for kept files and sidecars, which it writes as they are. Raises as a call does."""
        codec = codec_named(f"0.{ending.lstrip('.').lower()}", "0")
        if codec == "kept":
            return None
        archive, decoder, lock = self._open()
        with lock:
            found, problem = decoder.restored(_row(archive, f"a member .{ending.lstrip('.')}", codec, data), data)
        if problem is not None:
            raise ManifestError(problem)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _open(self) -> tuple[Archive, Decoder, threading.Lock]:
        if self._opened is None or self._opened[0] != os.getpid():
            archive = Archive(self.url)
            self._opened = (os.getpid(), archive, Decoder(archive, self.limits), threading.Lock())
        return self._opened[1:]


def _row(archive: Archive, name: str, codec: str, data: bytes) -> Row:
    """A row for bytes of which no manifest is at hand: it says what they are, and nothing to compare them with."""
    named = bitstream.model_named(data) if codec == MSINN.codec else near.model_named(data) if codec == NEAR.codec else None
    model = next((digest for digest in archive.run.models if named is not None and digest.startswith(named)), None)
    if named is not None and model is None:
        raise ManifestError(f"{name} is coded with model {named[:12]}, which is none of {archive.store.url}")
    return Row(
        key="", name=name, restore_name=name, source_uri="", shard_id=0, shard_key="the shard", stored_bytes=len(data),
        lossless=codec not in WITH_LOSS, decode_verified=False, status="coded", attempt="", codec=codec,
        payload_sha256=sha256(data), model_sha256=model,
    )  # fmt: skip


def register_hugging_face(url: str, limits: Limits = DEFAULT) -> None:
    """Have `datasets` read shards: `load_dataset("webdataset", data_files=...)` gives images in the columns `msn`, `jpg.jxl`, `png.jxl`, `jpg.lep`,
    `png.msr`.

    `.msn` stays as small as it is in the cache and is decoded when it is looked at, by Pillow (`msinn_core.pillow.register`); exact forms are given
    back as the files they were. `datasets` wants the same endings in all samples: archives of several forms are exported, by `msinn restore --to
    parquet`.

    Args:
        url: The archive, whose models decode `.msn`.
        limits: What is decoded at most.

    Raises:
        ManifestError: There is no archive, or it has lost a model.
    """
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    archive, decoder = Archive(url), MemberDecoder(url, limits)
    pillow.register(*(parse_model(archive.model_bytes(digest)) for digest in archive.run.models), max_pixels=limits.max_pixels)

    def jpeg_xl(data: bytes) -> bytes:
        return decoder.file("jpg.jxl" if jxl.is_jpeg(data) else "png.jxl", data) or data

    def lepton(data: bytes) -> bytes:
        return decoder.file("jpg.lep", data) or data

    def near_lossless(data: bytes) -> bytes:
        return decoder.file("png.msr", data) or data

    WebDataset.IMAGE_EXTENSIONS += [ending for ending in HUGGING_FACE_ENDINGS if ending not in WebDataset.IMAGE_EXTENSIONS]
    WebDataset.DECODERS |= {"jxl": jpeg_xl, "lep": lepton, "msr": near_lossless}
