"""What an archive stores of one image, read and checked, and made a picture again."""

from __future__ import annotations

from msinn_core.codec import Codec
from msinn_core.errors import PixelLimitError
from msinn_core.model_file import LoadedModel, load_model, parse_model, shipped_models
from msinn_core.picture import Picture
from pipeline.archive.archive import Archive
from pipeline.archive.layout import is_shard_name, sha256
from pipeline.archive.row import Row
from pipeline.errors import ManifestError, NotFoundError, OutageError, StorageError
from pipeline.limits import DEFAULT, Limits


class Decoder:
    """Decodes payloads of one archive, each with the model that its row names.

    Args:
        archive: Where the models are.
        limits: What is decoded at most.
        threads: Of an integer network, which gives the same pixels for every number of them.
    """

    def __init__(self, archive: Archive, limits: Limits = DEFAULT, threads: int = 1) -> None:
        self._archive = archive
        self._threads = threads
        self._limits = limits
        self._codecs: dict[tuple[str | None, str], Codec] = {}
        self._missing: dict[str | None, Exception] = {}

    def codec(self, model_sha256: str | None, device: str) -> Codec:
        """The codec of a model (of the run's, for None), loaded once. A float model runs on the kind of device that encoded.

        Raises:
            ManifestError: The archive has lost the model; or `CheckpointError`.
        """
        wanted = device
        if (model_sha256, wanted) not in self._codecs:
            model = self._model(model_sha256)
            device = device if model.profile == "float" else "cpu"
            if model.profile == "float":
                from msinn_core.float.engine import compute_on_one_thread

                compute_on_one_thread()
            self._codecs[model_sha256, wanted] = Codec(model, device=device, max_pixels=self._limits.max_pixels, threads=self._threads)
        return self._codecs[model_sha256, wanted]

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

    def picture(self, row: Row, payload: bytes) -> tuple[Picture, str | None]:
        """The picture of a coded row's payload, and a sentence if it is not exactly what was verified when it was encoded.

        Raises:
            ManifestError: The payload is damaged.
            CodecError: It does not decode.
        """
        check_payload(row, payload)
        codec = self.codec(row.model_sha256, "cuda" if (row.encoder or "").startswith("cuda") else "cpu")
        try:
            picture, _ = codec.decode(payload)
        except PixelLimitError as error:
            raise ManifestError(f"{row.name}: {error}: --max-pixels {error.pixels} decodes it, if you trust this archive") from error
        problem = None
        if row.recon_sha256 is not None and sha256(picture.content()) != row.recon_sha256:
            problem = f"{row.name}: decodes to other pixels than on the machine that encoded it ({row.encoder}); " + (
                "the float profile promises the same pixels only on like machines"
                if codec.model.profile == "float"
                else "its bytes are whole, so this machine computes wrongly: restore on another, and report it"
            )
        return picture, problem


def check_payload(row: Row, payload: bytes) -> None:
    """Raises `ManifestError` if these are not the bytes that the manifest names."""
    if sha256(payload) != row.payload_sha256:
        raise ManifestError(f"{row.name}: its bytes in {row.shard_key} are damaged (SHA-256 differs at offset {row.offset})")


def read_part(archive: Archive, row: Row, offset: int | None, length: int | None, limits: Limits = DEFAULT) -> bytes:
    """Bytes of a row's payload or sidecar.

    Raises:
        ManifestError: The shard is gone, or the row points elsewhere or says more than the reader takes.
        StorageError: They cannot be read.
    """
    first, count = checked_range(row.name, row.shard_key, offset, length, limits)
    try:
        return archive.store.read_range(row.shard_key, first, count)
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
