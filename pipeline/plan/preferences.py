"""What is asked of single images beside the budget: importance, floors and caps, from a table that names them."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.formats.parquet import read_bounded
from pipeline.plan.allocation import Limits
from pipeline.plan.config import LIMIT_RANGES, CompressConfig

Array = NDArray[np.float64]

_WEIGHTS = (1e-6, 1e6)


def _read_csv(data: bytes) -> pa.Table:
    # A name of digits is a name.
    return pyarrow.csv.read_csv(io.BytesIO(data), convert_options=pyarrow.csv.ConvertOptions(column_types={"name": pa.string()}))


class Preferences:
    """Weights and limits of all images; those of the configuration where a table says nothing.

    Args:
        config: The run's.
        columns: Per image `[N]`, NaN where the table says nothing: `weight`, or a limit's name.
    """

    def __init__(self, config: CompressConfig, columns: dict[str, Array] | None = None) -> None:
        self._config = config
        self._columns = columns or {}

    @classmethod
    def from_table(cls, config: CompressConfig, data: bytes, names: Sequence[str], where: str, *, others: bool = False) -> Preferences:
        """Read a Parquet or CSV file with a column `name` and any of `weight` and the limits (`min_psnr_db`, `max_bpp`, ...).

        Args:
            config: The run's.
            data: The file.
            names: Of the images, as in the manifest.
            where: Names the file in messages.
            others: It may name images that are not among these: those of an archive that grows.

        Raises:
            UsageError: Not such a table, a name that is no image's, or a value out of range.
        """
        import pyarrow.compute as pc  # here: a tenth of a second, and not every command needs it

        try:
            table = read_bounded(data) if data[:4] == b"PAR1" else _read_csv(data)
            table.validate(full=True)  # texts are UTF-8
            column_names = list(table.column_names)
        except (pa.ArrowException, UnicodeError) as error:
            raise UsageError(f"{where} is neither Parquet nor CSV: {str(error).splitlines()[0]}") from error
        known = ("weight", *LIMIT_RANGES)
        used = [column for column in column_names if column in known]
        if len(set(column_names)) < len(column_names):
            raise UsageError(f"{where} has some columns twice")
        if odd := [column for column in column_names if column not in (*known, "name")]:
            raise UsageError(f"{where} has a column {odd[0]!r} that means nothing here; it takes `name` and any of {', '.join(known)}")
        if "name" not in column_names or not used:
            raise UsageError(f"{where} has columns {', '.join(column_names)}; it needs `name` and some of {', '.join(known)}")
        try:
            listed = table.column("name").cast(pa.string())
        except pa.ArrowException as error:
            raise UsageError(f"column name of {where} holds no text") from error
        if len(pc.unique(listed)) != len(listed):
            raise UsageError(f"{where} names some images twice")
        row = pc.index_in(pa.array(names, pa.string()), value_set=listed)
        unknown = pc.filter(listed, pc.invert(pc.is_in(listed, value_set=pa.array(names, pa.string()))))
        if len(unknown) and not others:
            raise UsageError(f"{where} names {len(unknown)} images that are not in the source, {unknown[0]} the first of them")
        columns = {}
        for column in used:
            try:
                values = table.column(column).cast(pa.float64())
            except pa.ArrowException as error:
                raise UsageError(f"column {column} of {where} holds other things than numbers") from error
            low, high = _WEIGHTS if column == "weight" else LIMIT_RANGES[column]
            given = values.drop_null().to_numpy()
            given = given[~np.isnan(given)]
            if column == "min_psnr_db":
                given = given[given != np.inf]  # such an image is to lose nothing
            if len(given) and not low <= given.min() <= given.max() <= high:
                or_inf = ", or inf" if column == "min_psnr_db" else ""
                raise UsageError(f"column {column} of {where} goes from {given.min():g} to {given.max():g}; it takes {low:g} to {high:g}{or_inf}")
            columns[column] = np.asarray(values.take(row).to_numpy(), np.float64)
        return cls(config, columns)

    def weights(self, index: NDArray[np.int64]) -> Array | None:
        """Weights of some images; None if all weigh the same."""
        values = self._columns.get("weight")
        return None if values is None else np.asarray(np.nan_to_num(values[index], nan=1.0))

    def limits(self, index: NDArray[np.int64]) -> Limits:
        """Floors and caps of some images."""
        found: dict[str, float | Array | None] = {}
        for name in LIMIT_RANGES:
            common: float | None = getattr(self._config, name)
            values = self._columns.get(name)
            if values is None:
                found[name] = common
            else:
                found[name] = np.where(np.isnan(values[index]), np.nan if common is None else common, values[index])
        return Limits(**found)

    def min_psnr_db(self, index: NDArray[np.int64]) -> list[float | None]:
        """Floors of some images."""
        value = self.limits(index).min_psnr_db
        if not isinstance(value, np.ndarray):
            return [value] * len(index)
        return [None if np.isnan(floor) else floor for floor in value.tolist()]

    def lossless(self, index: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Of some images `[n]`: whether they are to lose nothing, because their floor is infinite."""
        value = self.limits(index).min_psnr_db
        return np.broadcast_to(np.asarray(np.nan if value is None else value) == np.inf, len(index))

    def q_range(self, index: NDArray[np.int64], q_max: float) -> tuple[Array, Array]:
        """Least and largest q of some images."""
        limits = self.limits(index)

        def bound(value: float | Array | None, default: float) -> Array:
            given = np.broadcast_to(np.asarray(np.nan if value is None else value, np.float64), len(index))
            return np.asarray(np.where(np.isnan(given), default, given))

        low = np.minimum(bound(limits.min_q, 0.0), q_max)
        return low, np.maximum(low, np.minimum(bound(limits.max_q, q_max), q_max))
