"""The cross-check: some images of every shard decoded from their bytes alone, by another backend than the one that encoded them.

An encoder whose picture is that of its own walk (see `coder`) proves that its bytes hold its symbols, and not that its machine computes rightly:
what a broken vector unit or memory does to its walk, it does to that picture too. Another instruction set has other code on other parts of the CPU;
beside a GPU the CPU is another machine.

```
items, done --> those drawn, or the first of the draw if none is --> another backend decodes the bytes --> the same samples: on they go
                                                                                                   other, or none: MachineError
```
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from msinn_core.codec import Codec
from msinn_core.errors import CodecError
from pipeline.archive.layout import sha256
from pipeline.encode.coder import encoder_of
from pipeline.encode.item import Item, ms_since
from pipeline.errors import MachineError
from pipeline.formats.outcome import Kept, Reason
from pipeline.sources import SourceRecord
from pipeline.sources.record import printable

_TOO_LITTLE_MEMORY = (MemoryError, RuntimeError)
"""For this image (RuntimeError is torch's): no verdict on the machine."""


@dataclass(frozen=True, slots=True)
class _Claim:
    """What an encoder says of an image: that these bytes decode to samples of this hash."""

    draw: float
    name: str
    encoder: str
    data: bytes
    recon_sha256: str
    model: int


class CrossCheck:
    """Decodes a sample of what one worker encoded: what its CPU did by another instruction set, what its GPU did by its CPU.

    Args:
        codecs: The CPU's, one of each model.
        share: Of the images, in [0, 1].
        worker: Host and process, for the sentence that names them.
    """

    def __init__(self, codecs: Sequence[Codec], share: float, worker: str) -> None:
        self._codecs, self._share, self._worker = codecs, share, worker
        self.counterpart = lru_cache(None)(self._made)

    def _made(self, model: int) -> Codec:
        """What decodes the sample of the CPU's images of a model; made when the first is drawn."""
        return self._codecs[model].counterpart()

    def checked(self, items: Iterable[Item], *, at_least_one: bool = True) -> Iterator[Item]:
        """The items of a shard, as they come, each of the sample decoded before it goes on.

        An image that was decoded from its bytes when it was measured was checked by that.

        Args:
            items: Done: with the data that will be stored, and measured.
            at_least_one: If none of the coded images is drawn, decode that which was nearest to it, at the end.

        Raises:
            MachineError: The bytes of an image decode to other samples, or not at all.
        """
        nearest: _Claim | None = None
        for item in items:
            if item.coded and item.measured is not None and item.measured.walked:
                assert item.data is not None
                record, model = item.task.record, item.task.model
                encoder = item.encoder or encoder_of(self._codecs[model])
                claim = _Claim(drawn(record), printable(record.name), encoder, item.data, item.measured.recon_sha256, model)
                if claim.draw < self._share:
                    at_least_one = False
                    self._check_item(item, claim)
                elif nearest is None or claim.draw < nearest.draw:
                    nearest = claim
            yield item
        if at_least_one and nearest is not None:
            with contextlib.suppress(*_TOO_LITTLE_MEMORY):  # it is written, and nothing speaks against it
                self._check(nearest)

    def _check_item(self, item: Item, claim: _Claim) -> None:
        started = time.perf_counter()
        try:
            self._check(claim)
        except _TOO_LITTLE_MEMORY as error:
            item.outcome = Kept(Reason.CODEC_FAILED, f"does not decode: {error}"[:300])
        item.verify_ms += ms_since(started)

    def _check(self, claim: _Claim) -> None:
        mine = self._codecs[claim.model]
        codec = self.counterpart(claim.model) if claim.encoder == encoder_of(mine) else mine
        try:
            decoded, _ = codec.decode(claim.data)
        except CodecError as error:
            raise self.disagreement(claim.name, claim.encoder, codec, f"does not decode ({error})") from error
        if sha256(decoded.content()) != claim.recon_sha256:
            raise self.disagreement(claim.name, claim.encoder, codec, "decodes to other pixels")

    def disagreement(self, name: str, encoder: str, codec: Codec, what: str) -> MachineError:
        """What is said of an image that another codec decodes otherwise than was meant.

        Args:
            name: Of the image.
            encoder: What encoded it.
            codec: What decoded it.
            what: That did.
        """
        return MachineError(
            f"worker {self._worker} computes wrongly: {name}, encoded there with {encoder}, {what} there with {codec.engine.name}; "
            "nothing of its shard is committed"
        )


def drawn(record: SourceRecord) -> float:
    """A number in [0, 1) that is the same for an image whenever and wherever it is encoded: those below the share are the sample."""
    digest = hashlib.sha256(f"{record.key}\0{printable(record.name)}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
