"""The analysis of images: what each would cost and lose at every rate, as the network predicts it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from pipeline.encode.batches import analyse_batches
from pipeline.encode.coders import Coders
from pipeline.encode.item import Item
from pipeline.encode.tasks import ANALYSIS_SCHEMA, Analysed, WorkConfig
from pipeline.formats.outcome import Reason
from pipeline.formats.records import to_table


def analyse(items: Iterable[Item], coders: Coders, config: WorkConfig) -> pa.Table:
    """Predicted curves of every image, as a table of `Analysed`. Images that cannot be coded get a reason and no curve."""
    return to_table(Analysed, _analysed(items, coders, config), ANALYSIS_SCHEMA)


def _analysed(items: Iterable[Item], coders: Coders, config: WorkConfig) -> Iterator[Analysed]:
    # Which of several models an image costs least with is found in real bytes, image by image.
    if (engine := coders.codec.batches) is not None and len(coders.coders) == 1:
        items = analyse_batches(items, coders, engine, sampled=config.sampled_analysis)
    for item in items:
        curves, model, reason = None, 0, item.reason
        if item.loaded.picture is not None and item.coded:
            if item.curves is not None:
                curves = item.curves
            else:
                curves, model = coders.curves(item.loaded.picture, sampled=config.sampled_analysis)
            curves, model = coders.best(item.loaded.picture, curves, model, sampled=config.sampled_analysis)
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
            model=model,
            exact_bytes=item.exact_bytes,
            form=item.exact_form,
        )
