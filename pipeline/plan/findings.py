"""What the analyses of a dataset say: curves of the images that a rate can change, and the bytes and pixels that it cannot.

Curves of large datasets are read from the archive again when they are needed, those of small ones stay in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.archive.shard import END_BYTES, stored_bytes
from pipeline.errors import ManifestError
from pipeline.formats.outcome import Reason
from pipeline.forms.avif import AVIF
from pipeline.forms.msinn import MSINN
from pipeline.plan.allocation import Upgrades, tie_breaks
from pipeline.plan.curves import DRAWN, CurveSet
from pipeline.plan.preferences import Preferences

CACHED_IMAGES = 200_000
"""Up to this many images the curves stay in memory (200 bytes each); beyond, they are read again."""

EXAMPLES = 16
"""Of each form so many images are remembered: a plan looks at them more closely."""

_HEADER_AND_MEAN_PADDING = 512 + 256

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ShardCurves:
    """Images of a shard whose size a rate can change: numbers `[n]` and curves at the anchors `[n, A]`;
    bytes of what loses nothing `[n]`, and its form; the form in which a rate changes it `[n]`; bytes of the files `[n]`."""

    index: NDArray[np.int64]
    bytes: NDArray[np.float32]
    mse: NDArray[np.float32]
    pixels: Array
    original: Array
    form: NDArray[np.str_]
    coded_form: NDArray[np.str_]
    source_bytes: Array


@dataclass(slots=True)
class Share:
    """Images that a rate does not change, of one form.

    Attributes:
        images: How many.
        stored_bytes: What they take in shards; `source_bytes`: what their files have.
        pixels: Of those of them that are known to be pictures.
        examples: Numbers of a few, drawn by `tie_breaks`.
    """

    images: int = 0
    stored_bytes: int = 0
    source_bytes: int = 0
    pixels: int = 0
    examples: list[tuple[float, int]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Older:
    """What an archive has already that grows, and what its budget as a whole counts.

    Attributes:
        counted_bytes: Of every shard that is still needed.
        pixels: Of the images that the new generation still has; so `source_bytes`, of their files.
    """

    counted_bytes: int = 0
    pixels: int = 0
    source_bytes: int = 0


class Findings:
    """Takes in each shard's analysis once.

    Args:
        shard_ids: `[N]`, shard of each record; rising.
        objective: What rates are chosen for; see `CompressConfig`.
        preferences: Of single images.
        analysis_of: Reads a shard's analysis again; needed above `CACHED_IMAGES`.

    Attributes:
        fixed: `[S]`, bytes of each shard that no rate changes: its end, the files that are not coded, counted sidecars.
        has_coded: `[S]`, whether a shard has images that a rate can change.
        total_pixels: What `--bpp` counts.
        total_source_bytes: Of all files.
        num_coded: Images that a rate can change.
        num_kept: Files that no rate changes, of `kept_bytes` in all; the pixels of `num_unreadable_pixels` of them count nowhere.
        fixed_forms: What these files are together, by the form that they take.
        largest_kept: Numbers of the largest of them.
    """

    def __init__(
        self, shard_ids: NDArray[np.int32], objective: str, preferences: Preferences, analysis_of: Callable[[int], pa.Table] | None = None
    ) -> None:
        self.num_images = len(shard_ids)
        self.num_shards = int(shard_ids[-1]) + 1
        self.first = np.searchsorted(shard_ids, np.arange(self.num_shards + 1))
        self._objective, self._preferences, self._analysis_of = objective, preferences, analysis_of
        self._shards: dict[int, ShardCurves] | None = {} if self.num_images <= CACHED_IMAGES else None
        if self._shards is None and analysis_of is None:
            raise ManifestError(f"plans of more than {CACHED_IMAGES} images need a stored analysis")
        self._recent = lru_cache(16)(self._read_again)
        self._added = np.zeros(self.num_shards, bool)
        self.has_coded = np.zeros(self.num_shards, bool)
        self.fixed = np.full(self.num_shards, float(END_BYTES))
        self.total_pixels = self.total_source_bytes = self.num_coded = 0
        self.num_kept = self.kept_bytes = self.num_unreadable_pixels = 0
        self.fixed_forms: dict[str, Share] = {}
        self._kept_examples: list[tuple[float, int]] = []

    @property
    def in_memory(self) -> bool:
        """Whether all curves are, so that looking at every image is cheap."""
        return self._shards is not None

    @property
    def complete(self) -> bool:
        """Whether every shard was added."""
        return bool(self._added.all())

    @property
    def largest_kept(self) -> list[int]:
        return [index for _, index in self._kept_examples]

    def add(self, shard: int, analysis: pa.Table) -> ShardCurves:
        """Take in the rows of `encode.tasks.ANALYSIS_SCHEMA` of one shard.

        Returns:
            Those of its images that a rate can change.

        Raises:
            ManifestError: They are not of this shard, or hold what no analysis gives.
        """
        analysis = analysis.sort_by("index")
        curves = _coded(analysis, shard)
        index = analysis.column("index").to_numpy()
        if not np.array_equal(index, np.arange(self.first[shard], self.first[shard + 1])):
            raise ManifestError("the stored analysis does not have one row for each image: remove the archive's analyse/ folder and run again")
        self._count(shard, analysis, index, np.isin(index, curves.index))
        self.num_coded += len(curves.index)
        self._added[shard], self.has_coded[shard] = True, len(curves.index) > 0
        if self._shards is not None:
            self._shards[shard] = curves
        return curves

    def _count(self, shard: int, analysis: pa.Table, index: NDArray[np.int64], coded: NDArray[np.bool_]) -> None:
        # Broken and oversized images are stored as they are; their pixels must not buy bytes for the others.
        troubled = [reason for reason in Reason if reason.troubles]
        failed = np.isin(np.array(analysis.column("reason").to_pylist(), dtype=object), troubled)
        source = _numbers(analysis, "source_bytes")
        # What is not coded lies there in its smallest exact form, if it has one.
        exact = _numbers(analysis, "exact_bytes")
        size = np.array([stored_bytes(int(value)) if value else 0 for value in np.where(exact > 0, exact, source)], np.float64)
        self.fixed[shard] += float(np.where(coded, 0.0, size).sum() + _numbers(analysis, "sidecar_bytes").sum())
        kept = ~coded & (source > 0)
        self.num_kept += int(kept.sum())
        self.kept_bytes += int(size[kept].sum())
        forms = np.array([name or "kept" for name in analysis.column("form").to_pylist()], dtype=object)
        pixels = np.where(failed, 0.0, _numbers(analysis, "width") * _numbers(analysis, "height"))
        for name in sorted(set(forms[kept])):
            its, share = kept & (forms == name), self.fixed_forms.setdefault(name, Share())
            share.images += int(its.sum())
            share.stored_bytes += int(size[its].sum())
            share.source_bytes += int(source[its].sum())
            share.pixels += int(pixels[its].sum())
            share.examples = sorted([*share.examples, *zip(tie_breaks(index[its]).tolist(), index[its].tolist(), strict=True)])[:EXAMPLES]
        self.num_unreadable_pixels += int((failed & (source > 0)).sum())
        self._kept_examples = sorted([*self._kept_examples, *zip(size[kept].tolist(), index[kept].tolist(), strict=True)], reverse=True)[:3]
        self.total_pixels += int(pixels.sum())
        self.total_source_bytes += int(source.sum())

    def upgrades(self, shard: int) -> tuple[NDArray[np.int64], Upgrades]:
        """Numbers of a shard's images that a rate can change, and what rates do to them."""
        return self.prepared(self._held(shard))

    def forms(self, shard: int) -> NDArray[np.str_]:
        """Of the same images: the form of what loses nothing."""
        return self._held(shard).form

    def coded_forms(self, shard: int) -> NDArray[np.str_]:
        """Of the same images: the form in which a rate changes them."""
        return self._held(shard).coded_form

    def source_bytes(self, shard: int) -> Array:
        """Of the same images: the bytes of their files."""
        return self._held(shard).source_bytes

    def _held(self, shard: int) -> ShardCurves:
        return self._shards[shard] if self._shards is not None else self._recent(shard)

    def walk(self, shards: Iterable[int]) -> Iterator[Upgrades]:
        """The upgrades of those shards that have any."""
        return (self.upgrades(shard)[1] for shard in shards if self.has_coded[shard])

    def _read_again(self, shard: int) -> ShardCurves:
        assert self._analysis_of is not None
        return _coded(self._analysis_of(shard), shard)

    def prepared(self, held: ShardCurves) -> tuple[NDArray[np.int64], Upgrades]:
        """Numbers of these images, and what rates do to them."""
        anchors = np.arange(held.bytes.shape[1], dtype=np.float64)
        stored = held.bytes.astype(np.float64) + _HEADER_AND_MEAN_PADDING
        curves = CurveSet.from_anchors(anchors, stored, held.mse.astype(np.float64), held.pixels, held.original)
        limits, weights = self._preferences.limits(held.index), self._preferences.weights(held.index)
        return held.index, Upgrades.of(curves, self._objective, limits, weights, tie_breaks(held.index))


def _numbers(analysis: pa.Table, name: str) -> Array:
    return np.nan_to_num(np.asarray(analysis.column(name).to_numpy(), np.float64))


def _coded(analysis: pa.Table, shard: int) -> ShardCurves:
    """The images of an analysis that have curves."""
    some = analysis.filter(analysis.column("bytes").is_valid())
    if not some.num_rows:
        none = np.empty((0, 2), np.float32)
        return ShardCurves(np.empty(0, np.int64), none, none, np.empty(0), np.empty(0), np.empty(0, "U12"), np.empty(0, "U12"), np.empty(0))

    def curves(name: str) -> NDArray[np.float32]:
        values = some.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
        if values.size % some.num_rows or values.size < 2 * some.num_rows or not np.isfinite(values).all() or (values < 0).any():
            raise ManifestError(f"the stored analysis of shard {shard} holds impossible curves: remove the archive's analyse/ folder and run again")
        return np.asarray(values.reshape(some.num_rows, -1), np.float32)

    # What a rate can change may lie exactly, too: in the analysis' smallest form, where it looked for one, or as its file.
    exact, source = _numbers(some, "exact_bytes"), _numbers(some, "source_bytes")
    original = np.array([stored_bytes(int(value)) for value in np.where(exact > 0, exact, source)], np.float64)
    form = np.array([name or "kept" for name in some.column("form").to_pylist()], "U12")
    coded_form = np.where(some.column("model").to_numpy() == DRAWN, AVIF.name, MSINN.name)
    pixels = _numbers(some, "width") * _numbers(some, "height")
    return ShardCurves(some.column("index").to_numpy(), curves("bytes"), curves("mse"), pixels, original, form, coded_form, source)
