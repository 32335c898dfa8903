"""An image that is done, as its row of the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from msinn_core import metrics
from pipeline.archive.layout import sha256
from pipeline.archive.row import MetadataPart, Row, Sidecar
from pipeline.archive.shard import Member, stored_bytes
from pipeline.encode.item import Item
from pipeline.encode.tasks import ShardTask
from pipeline.formats.outcome import Coded, Missing, Outcome, Reason
from pipeline.forms.base import Exact
from pipeline.forms.family import promise_of
from pipeline.sources.record import printable


@dataclass(frozen=True, slots=True)
class Describer:
    """Makes the rows of one shard.

    Attributes:
        task: The shard.
        models: SHA-256 of each of the run's models.
        encoder: Versions, beside the device that each item names; `worker`: host and process.
    """

    task: ShardTask
    models: tuple[str, ...]
    encoder: str
    worker: str

    def row(self, item: Item, member: Member | None, sidecars: tuple[Sidecar, ...]) -> Row:
        """The row of an item that was written to the shard, but for the shard's name: that is known once all of it is hashed.

        Long because it has a line for every column.

        Args:
            item: With its source, and its picture's metadata.
            member: Where its payload lies; None if nothing could be stored.
            sidecars: Where its sidecars lie.
        """
        record, info, picture = item.task.record, item.loaded.info, item.loaded.picture
        coded, outcome, exact_form = item.coded, _outcome(item), None if item.coded else item.stored
        form, exact = promise_of(item.codec) if member is not None else (None, Exact.BYTES)
        pixels = info.width * info.height if info.width and info.height else None
        decodes = pixels is not None and not (item.reason is not None and item.reason.troubles)
        stored = stored_bytes(member.length) if member else 0
        measured = item.measured if coded else None
        # The network's part, where there is one.
        bitstream = None if not coded or item.drawn else item.data if item.near is None else item.near.bitstream
        own_writer = item.near.writer if item.near is not None else item.writer
        writer = own_writer if coded else exact_form.writer if exact_form is not None else None
        mse = measured.mse if measured is not None else 0.0 if decodes else None
        return Row(
            key=record.key,
            name=printable(record.name),
            restore_name=record.keep_name if exact is Exact.BYTES else record.restore_name,
            source_uri=record.source_uri,
            member=member.name if member else None,
            source_bytes=None if item.source is None else len(item.source),
            source_sha256=None if item.source is None else sha256(item.source),
            source_format=info.format,
            mtime=record.mtime,
            width=info.width,
            height=info.height,
            pixels=pixels if decodes else None,
            channels=info.channels,
            bit_depth=info.bit_depth,
            orientation=info.orientation,
            icc=len(picture.icc) if picture and picture.icc else None,
            exif=len(picture.exif) if picture and picture.exif else None,
            xmp=len(picture.xmp) if picture and picture.xmp else None,
            metadata=tuple(MetadataPart(kind=kind, bytes=size) for kind, size in item.loaded.carried.listed),
            metadata_lost=item.loaded.carried.dropped if exact is not Exact.BYTES else None,
            shard_id=self.task.shard_id,
            shard_key="",
            offset=member.offset if member else None,
            length=member.length if member else None,
            stored_bytes=stored,
            payload_sha256=member.sha256 if member else None,
            sidecars=sidecars,
            codec=item.codec if member is not None else None,
            form=form,
            exact=exact if member is not None else None,
            writer=writer,
            model_sha256=self.models[item.task.model] if bitstream else None,
            bitstream_version=bitstream[4] if bitstream else None,
            q=(item.q if item.symbols is None else item.symbols.q) if coded else None,
            multiplier=self.task.multiplier if coded and self.task.plan_rev else None,
            plan_rev=self.task.plan_rev if self.task.plan_rev else None,
            clamp=item.clamp if coded and item.near is None else None,
            bpp=8 * member.length / pixels if member and pixels else None,
            bpp_stored=8 * stored / pixels if member and pixels else None,
            predicted_bytes=item.task.predicted_bytes or None,
            mse=mse,
            psnr_db=metrics.psnr_db(mse) if coded and mse else None,
            lossless=member is not None and (not coded or mse == 0),
            ms_ssim=measured.ms_ssim if measured is not None else None,
            decode_verified=coded or exact_form is not None,
            recon_sha256=measured.recon_sha256 if measured is not None else exact_form.recon_sha256 if exact_form is not None else None,
            encoder=f"{item.encoder}, {self.encoder}" if coded and item.encoder else None,
            status=Coded.status if exact is Exact.PIXELS and not isinstance(outcome, Missing) else outcome.status,
            error_code=outcome.reason,
            error=outcome.message,
            attempt=self.task.attempt,
            fetch_ms=item.fetch_ms,
            decode_ms=item.decode_ms,
            model_ms=item.model_ms,
            entropy_ms=item.entropy_ms,
            verify_ms=item.verify_ms,
            worker=self.worker,
            encoded_at=datetime.now(UTC),
        )


def _outcome(item: Item) -> Outcome:
    """Of the image with its sidecars: where one is missing, something of the image is."""
    if item.lost and not isinstance(item.outcome, Missing):
        return Missing(Reason.SIDECAR, "; ".join(item.lost))
    return item.outcome
