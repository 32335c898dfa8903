"""What an archive stores of one image, read and checked, and made a picture again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from msinn_core.codec import Codec
from msinn_core.errors import DeviceError, DeviceMemoryError, PixelLimitError
from msinn_core.model_file import LoadedModel, load_model, parse_model, shipped_models
from msinn_core.picture import Picture
from pipeline.archive.archive import Archive
from pipeline.archive.layout import is_shard_name, sha256
from pipeline.archive.row import Row
from pipeline.errors import ManifestError, NotFoundError, OutageError, StorageError
from pipeline.formats import images
from pipeline.formats.decoding import Loader
from pipeline.forms import near, samples
from pipeline.forms.avif import AVIF
from pipeline.forms.base import Refusal, TooLargeRefusal
from pipeline.forms.family import WITH_LOSS
from pipeline.forms.libraries import AbsentError
from pipeline.forms.near import NEAR
from pipeline.forms.process import Forms
from pipeline.forms.samples import Samples
from pipeline.limits import DEFAULT, Limits

_T = TypeVar("_T")

ReadRange = Callable[[str, int, int], bytes]
"""Bytes of an object from a first one on, as `Store.read_range`."""


class Decoder:
    """Decodes payloads of one archive, each with the model that its row names.

    Args:
        archive: Where the models are.
        limits: What is decoded at most.
        threads: Of an integer network, which gives the same pixels for every number of them.
        device: Of integer networks, to the same pixels: see `engines.engine_for`.

    Attributes:
        loader: Decodes image files, in a process of its own.
        lost: A sentence once a device has failed: the CPU goes on.
        used: What computed so far, for people.
    """

    def __init__(self, archive: Archive, limits: Limits = DEFAULT, threads: int = 1, device: str = "cpu") -> None:
        self._archive = archive
        self._threads = threads
        self._limits = limits
        self._device = device
        self._codecs: dict[tuple[str | None, str], Codec] = {}
        self._missing: dict[str | None, Exception] = {}
        self._forms = Forms(limits.max_pixels, limits.max_file_bytes)
        self.loader = Loader(limits.max_pixels)
        self.lost: str | None = None
        self.used: set[str] = set()
        self._loading = threading.RLock()

    def codec(self, model_sha256: str | None, device: str) -> Codec:
        """The codec of a model (of the run's, for None), loaded once. A float model runs on the kind of device that encoded.

        Safe to call from several threads.

        Raises:
            ManifestError: The archive has lost the model; or `CheckpointError`.
        """
        with self._loading:
            return self._codec(model_sha256, device)

    def _codec(self, model_sha256: str | None, device: str) -> Codec:
        # What rows name is theirs who wrote them: each model is held in memory, so only those that the run names count.
        if model_sha256 is not None and model_sha256 not in self._archive.run.models:
            raise ManifestError(f"{self._archive.store.url} is not made with model {model_sha256[:12]}, which a row of its manifest names")
        wanted = f"{device} {self._device}"
        if (model_sha256, wanted) not in self._codecs:
            model = self._model(model_sha256)
            if model.profile != "float" and (already := self._of(model_sha256)) is not None:
                return already
            device = device if model.profile == "float" else self._device
            if model.profile == "float":
                from msinn_core.float.engine import compute_on_one_thread

                compute_on_one_thread()
            self._codecs[model_sha256, wanted] = Codec(model, device=device, max_pixels=self._limits.max_pixels, threads=self._threads)
        return self._codecs[model_sha256, wanted]

    def _of(self, model_sha256: str | None) -> Codec | None:
        """That of an integer model on the present device: its pixels are the same wherever it was encoded."""
        return next((codec for (digest, on), codec in self._codecs.items() if digest == model_sha256 and on.endswith(f" {self._device}")), None)

    def _model(self, digest: str | None) -> LoadedModel:
        if digest in self._missing:
            raise self._missing[digest]
        try:
            return parse_model(self._archive.model_bytes(digest))
        except (ManifestError, StorageError) as error:
            # The archive lost it; the same file, by its hash, may have come with this msinn.
            if digest is not None and digest in shipped_models().values():
                return load_model(digest)
            if not isinstance(error, OutageError):
                self._missing[digest] = error
            raise

    def codec_of(self, row: Row) -> Codec:
        """Of a coded row; see `codec`."""
        return self.codec(row.model_sha256, "cuda" if (row.encoder or "").startswith("cuda") else "cpu")

    def gives_way(self, error: Exception) -> None:
        """A device could not do something: if it failed, and has not merely too little memory, the CPU does everything from now on."""
        if not isinstance(error, DeviceMemoryError) and self._device != "cpu":
            self._device = "cpu"
            self.lost = (str(error) or type(error).__name__)[:300]

    def picture(self, row: Row, payload: bytes) -> tuple[Picture, str | None]:
        """The picture of a row's payload that lost something, and a sentence if it is not exactly what was verified when it was encoded.

        Raises:
            ManifestError: The payload is damaged.
            CodecError: It does not decode.
        """
        check_payload(row, payload)
        if row.codec == NEAR.codec:
            return self._near(row, payload)
        if row.codec == AVIF.codec:
            found = self._unpacked(row, lambda: self._forms.decode(AVIF.codec, payload))
            assert isinstance(found, Samples)
            picture = found.picture()
            return picture, self.compared(row, picture, None)
        picture, codec = self._coded(row, payload)
        return picture, self.compared(row, picture, codec)

    def _coded(self, row: Row, bitstream: bytes) -> tuple[Picture, Codec]:
        """The picture of a bitstream, and what decoded it."""
        codec = self.codec_of(row)
        try:
            return codec.decode(bitstream)[0], codec
        except PixelLimitError as error:
            raise too_large(row, error) from error
        except DeviceError as error:
            self.gives_way(error)
            codec = Codec(codec.model, max_pixels=self._limits.max_pixels, threads=self._threads)
            return codec.decode(bitstream)[0], codec

    def _near(self, row: Row, payload: bytes) -> tuple[Picture, str | None]:
        used: list[Codec] = []

        def decode_bitstream(part: bytes) -> Picture:
            picture, codec = self._coded(row, part)
            used.append(codec)
            return picture

        picture = self._unpacked(row, lambda: near.restored(near.parse(payload), decode_bitstream, partial(self._forms.decode, "jxl")))
        return picture, self.compared(row, picture, used[0] if used else None)

    def restored(self, row: Row, payload: bytes) -> tuple[bytes, str | None]:
        """The file that comes back of a payload in any form, and a sentence if it is not exactly what it was.

        Raises:
            ManifestError: The payload is damaged, or its library is not installed here.
            CodecError: It does not decode.
        """
        if row.codec in WITH_LOSS:
            picture, problem = self.picture(row, payload)
            return images.to_png(picture), problem
        found = self.exact(row, payload)
        return (found, None) if isinstance(found, bytes) else (samples.to_png(found), None)

    def exact(self, row: Row, payload: bytes) -> bytes | Samples:
        """The file, or its samples, of a payload that needs no model: compared with what the row says of them.

        Raises:
            ManifestError: It is damaged, or its library is not installed here.
        """
        check_payload(row, payload)
        if row.codec == "kept":
            return payload
        found = self._unpacked(row, lambda: self._forms.decode(row.codec or "", payload))
        digest, expected = (found, row.source_sha256) if isinstance(found, bytes) else (found.content(), row.recon_sha256)
        if expected is not None and sha256(digest) != expected:
            what = "another file" if isinstance(found, bytes) else "other samples"
            raise ManifestError(
                f"{row.name}: its bytes in {row.shard_key} are whole and decode to {what} than its row says: this machine errs, or its writer did"
            )
        return found

    def _unpacked(self, row: Row, decode: Callable[[], _T]) -> _T:
        """What a form's decoder gives; its refusals as sentences about the row."""
        try:
            return decode()
        except AbsentError as error:
            raise ManifestError(f"{row.name} is stored as {row.codec} ({row.writer or 'writer unknown'}): {error}") from error
        except TooLargeRefusal as error:
            raise ManifestError(f"{row.name}: {error}: --max-pixels {error.pixels} decodes it, if you trust this archive") from error
        except Refusal as error:
            raise ManifestError(f"{row.name}: its bytes in {row.shard_key} are no sound {row.codec}: {error}") from error

    def compared(self, row: Row, picture: Picture, codec: Codec | None) -> str | None:
        """A sentence if a picture is not exactly what was verified when it was encoded. `codec` decoded it; None: no network took part."""
        if codec is not None:
            self.used.add(f"{codec.engine.device} ({codec.engine.name})")
        if row.recon_sha256 is None or sha256(picture.content()) == row.recon_sha256:
            return None
        return f"{row.name}: decodes to other pixels than on the machine that encoded it ({row.encoder}); " + (
            "the float profile promises the same pixels only on like machines"
            if codec is not None and codec.model.profile == "float"
            else "its bytes are whole, so this machine computes wrongly: restore on another, and report it"
        )


def too_large(row: Row, error: PixelLimitError) -> ManifestError:
    """What a picture over the pixel limit is told to users as."""
    return ManifestError(f"{row.name}: {error}: --max-pixels {error.pixels} decodes it, if you trust this archive")


def check_payload(row: Row, payload: bytes) -> None:
    """Raises `ManifestError` if these are not the bytes that the manifest names."""
    if sha256(payload) != row.payload_sha256:
        raise ManifestError(f"{row.name}: its bytes in {row.shard_key} are damaged (SHA-256 differs at offset {row.offset})")


def read_part(archive: Archive, row: Row, offset: int | None, length: int | None, limits: Limits = DEFAULT, *, via: ReadRange | None = None) -> bytes:
    """Bytes of a row's payload or sidecar.

    Args:
        archive: Where they lie.
        row: Of the image.
        offset: First byte in the shard.
        length: Bytes.
        limits: What is read at most.
        via: Reads them in place of the store, which it asks itself.

    Raises:
        ManifestError: The shard is gone, or the row points elsewhere or says more than the reader takes.
        StorageError: They cannot be read.
    """
    first, count = checked_range(row.name, row.shard_key, offset, length, limits)
    try:
        return (via or archive.store.read_range)(row.shard_key, first, count)
    except NotFoundError as error:
        raise ManifestError(f"{row.name}: {archive.store.path(row.shard_key)} is missing") from error


def checked_range(name: str, shard: str, offset: int | None, length: int | None, limits: Limits) -> tuple[int, int]:
    """Offset and length. Raises `ManifestError` for what is no range of a shard of the archive, or one that is larger than the reader takes."""
    if not is_shard_name(shard):
        raise ManifestError(f"{name}: its row points to {shard!r}, which is no shard of the archive: the manifest is not to be trusted")
    if type(offset) is not int or type(length) is not int or not 0 <= offset < 2**62 or length < 0:
        raise ManifestError(f"{name}: its row says no range of bytes: the manifest is damaged")
    if length > limits.max_file_bytes:
        raise ManifestError(f"{name} has {length:,} bytes, over the limit of {limits.max_file_bytes:,}: say --max-file-bytes {length}")
    return offset, length
