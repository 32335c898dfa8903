"""The analysis of images: what each would cost and lose at every rate, as the network predicts it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from pipeline.encode.coder import ImageCoder
from pipeline.encode.item import Item
from pipeline.encode.tasks import ANALYSIS_SCHEMA, Analysed, WorkConfig
from pipeline.formats.outcome import Reason
from pipeline.formats.records import to_table


def analyse(items: Iterable[Item], coder: ImageCoder, config: WorkConfig) -> pa.Table:
    """Predicted curves of every image, as a table of `Analysed`. Images that cannot be coded get a reason and no curve."""
    return to_table(Analysed, _analysed(items, coder, config), ANALYSIS_SCHEMA)


def _analysed(items: Iterable[Item], coder: ImageCoder, config: WorkConfig) -> Iterator[Analysed]:
    for item in items:
        curves, reason = None, item.reason
        if item.loaded.picture is not None and item.coded:
            curves = coder.curves(item.loaded.picture, sampled=config.sampled_analysis)
            reason = Reason.CODEC_FAILED if curves is None else None
        yield Analysed(
            index=item.task.record.index,
            source_bytes=None if item.source is None else len(item.source),
            width=item.loaded.info.width,
            height=item.loaded.info.height,
            reason=reason,
            sidecar_bytes=item.sidecar_bytes if config.count_sidecars else 0,
            bytes=None if curves is None else curves.bytes,
            mse=None if curves is None else curves.mse,
        )
