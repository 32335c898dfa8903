"""Images of a shard coded by a GPU: batches of one padded size, several under way at once, out in the order of their tasks.

```
items --> in_batches --> transform --> compress, each at its q --> the pictures of their walks --> host threads: pack, measure
                                       ^------ those that miss their quality, at another q -------'
DeviceMemoryError: halves; one image alone, or a device that failed: left to the CPU, which codes it when its turn comes
```
An image's bytes are those that the CPU alone would give it, whatever batch it was in.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

from msinn_core.codec import Codec
from msinn_core.engine import BatchEngine
from msinn_core.errors import CodecError, DeviceLostError, DeviceMemoryError
from msinn_core.flight import in_batches
from msinn_core.framing import padded_size
from msinn_core.prediction import part_of
from pipeline.encode.coder import ImageCoder, encoder_of, is_finite
from pipeline.encode.coders import Coders
from pipeline.encode.item import Item, ms_since
from pipeline.encode.load import ItemLoader
from pipeline.encode.search import tries, verify
from pipeline.encode.tasks import ImageTask


def encode_batches(
    tasks: Sequence[ImageTask], loader: ItemLoader, coder: Coders, engine: BatchEngine, target_psnr_db: float | None
) -> Iterator[Item]:
    """What `stream.encode_stream` gives, coded on a device.

    Args:
        tasks: What is wanted of each image.
        loader: Fetches and decodes image files, ahead of the network.
        coder: Codes.
        engine: The coder's, of the device: its threads, and how much it holds.
        target_psnr_db: See `search.verify`.

    Raises:
        StorageError: The source's store failed.
    """

    def size_of(item: Item) -> tuple[int, int] | None:
        waits = item.coded and not item.drawn and item.loaded.picture is not None and coder.codec.batches is engine
        return padded_size(item.loaded.picture) if waits and item.loaded.picture is not None else None

    def run(items: list[Item]) -> None:
        _code(items, coder, engine, target_psnr_db)

    for item in in_batches(loader.ahead(tasks), size_of, run, engine):
        if item.coded and item.measured is None:
            coder.compress(item, item.task.q)
            coder.pack(item)
            if item.coded:
                verify(coder, item, target_psnr_db)
        if item.coded:
            item.keep_if_larger()
        item.latents = None
        yield item


def _code(items: list[Item], coder: Coders, engine: BatchEngine, target_psnr_db: float | None) -> None:
    """Code, pack and measure the items of a batch, or leave them to the CPU.

    Raises:
        DeviceMemoryError: The device has too little memory for all of them.
    """
    try:
        for one, its in coder.divided(items):
            _in_rounds(its, one.codec, one, engine, target_psnr_db)
    except DeviceMemoryError:
        if len(items) > 1:
            raise
        _leave(items)
    except Exception as error:  # whatever a device, a driver or a compiler raises: the CPU does without them, or says what is wrong with an image
        if _is_loss(error):
            coder.gives_way(error)
        _leave(items)


def analyse_batches(items: Iterable[Item], coder: Coders, engine: BatchEngine, *, sampled: bool) -> Iterator[Item]:
    """The items in their order, each with `curves` if it is to be coded; without, the device could not do it.

    Args:
        items: With their pictures.
        coder: Of one model.
        engine: The coder's, of the device.
        sampled: See `Codec.analyse`.
    """

    def size_of(item: Item) -> tuple[int, int] | None:
        if not item.coded or item.loaded.picture is None or coder.codec.batches is not engine:
            return None
        return padded_size(part_of(item.loaded.picture, sampled=sampled))

    def run(items: list[Item]) -> None:
        try:
            found = coder.codec.analyse_many([item.loaded.picture for item in items if item.loaded.picture is not None], sampled=sampled)
        except DeviceMemoryError:
            if len(items) > 1:
                raise
        except Exception as error:  # as in `_code`
            if _is_loss(error):
                coder.gives_way(error)
        else:
            for item, curves in zip(items, found, strict=True):
                item.curves = curves if is_finite(curves) else None

    return in_batches(items, size_of, run, engine)


def _is_loss(error: Exception) -> bool:
    """Whether it is of the device, and not of an image or the host's memory."""
    return isinstance(error, DeviceLostError) or not isinstance(error, CodecError | MemoryError)


def _leave(items: list[Item]) -> None:
    """To the CPU: as if nothing had been done."""
    for item in items:
        if item.coded:
            item.on_checker = True
            item.latents = item.symbols = item.data = item.measured = None


def _in_rounds(items: list[Item], codec: Codec, coder: ImageCoder, engine: BatchEngine, target_psnr_db: float | None) -> None:
    """All at their task's q, then those again that miss their quality."""
    started = time.perf_counter()
    latents = codec.transform_many([item.loaded.picture for item in items if item.loaded.picture is not None])
    for item, of_item in zip(items, latents, strict=True):
        item.latents = of_item
        item.model_ms += ms_since(started) / len(items)
    searches: dict[int, Iterator[float]] = {}
    wanted = [(item, item.task.q) for item in items]
    while wanted:
        _compress(wanted, codec)
        list(engine.threads.map(lambda item: _pack_and_measure(item, coder), [item for item, _ in wanted]))
        following = []
        for item, _ in wanted:
            search = searches.setdefault(id(item), tries(item, coder.q_max, target_psnr_db))
            if (q := next(search, None)) is not None:
                following.append((item, q))
        wanted = following
    for item in items:  # measured: what the device and its pinned memory hold of it is not needed any more
        item.q = None if item.symbols is None else item.symbols.q
        item.latents = item.symbols = None


def _compress(wanted: list[tuple[Item, float]], codec: Codec) -> None:
    started = time.perf_counter()
    found = codec.compress_many([item.latents for item, _ in wanted if item.latents is not None], [q for _, q in wanted], keep_walk=True)
    for (item, _), symbols in zip(wanted, found, strict=True):
        item.symbols, item.data, item.measured, item.encoder = symbols, None, None, encoder_of(codec)
        if symbols.walked is not None:
            symbols.walked.picture()  # of all of them at once, in this thread, whose stream it is
        item.model_ms += ms_since(started) / len(wanted)


def _pack_and_measure(item: Item, coder: ImageCoder) -> None:
    coder.pack(item)
    if item.coded:
        coder.measure(item)
