from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.archive.commits import Commit
from pipeline.archive.shard import END_BYTES
from pipeline.encode.tasks import ANALYSIS_SCHEMA
from pipeline.errors import BudgetInfeasibleError, ManifestError, UsageError
from pipeline.formats.outcome import Reason
from pipeline.plan.config import Budget, CompressConfig
from pipeline.plan.findings import Older
from pipeline.plan.outlook import outlook
from pipeline.plan.planner import Choice, Planner
from pipeline.plan.preferences import Preferences

PIXELS = 200 * 100


def analysis(count: int, *, broken: int = 0) -> pa.Table:
    q = np.arange(12)
    rows = [
        {
            "index": i,
            "source_bytes": 40_000,
            "width": 200,
            "height": 100,
            "reason": None,
            "sidecar_bytes": 0,
            "bytes": (600 + 30 * i) * np.exp(0.3 * q),
            "mse": 80 * np.exp(-0.4 * q),
        }
        for i in range(count)
    ]
    rows += [
        {"index": count + i, "source_bytes": 5000, "width": 9000, "height": 9000, "reason": Reason.BROKEN, "sidecar_bytes": 0} for i in range(broken)
    ]
    return pa.Table.from_pylist(rows, schema=ANALYSIS_SCHEMA)


def planner(kind: str, value: float, count: int = 20, broken: int = 0, preferences: Preferences | None = None, **options: float) -> Planner:
    config = CompressConfig(budget=Budget(kind=kind, value=value), **options)  # type: ignore[arg-type]
    shard_ids = np.arange(count + broken, dtype=np.int32) // 4
    table = analysis(count, broken=broken)
    tables = {shard: table.filter(pa.array(shard_ids == shard)) for shard in range(int(shard_ids[-1]) + 1)}
    made = Planner(config, shard_ids, names=lambda i: f"image{i}", preferences=preferences, analysis_of=tables.__getitem__)
    for shard, part in tables.items():
        made.add(shard, part)
    return made


def chosen(made: Planner) -> dict[int, Choice]:
    return {i: choice for shard in range(made.findings.num_shards) for i, choice in made.choices(shard).items()}


def sent(made: Planner, *shards: int) -> None:
    for shard in shards:
        made.promise(shard)


def committed(made: Planner, shard: int, *, excess: float = 1.0) -> Commit:
    """What a worker would have committed had every image come out `excess` times its prediction."""
    predicted = made.predicted_coded(shard)
    values = {field.name: 0 for field in dataclasses.fields(Commit)}
    values |= {"shard_id": shard, "predicted_bytes": predicted, "coded_bytes": round(predicted * excess), "images": 4}
    return Commit(**{**values, "counted_bytes": round(predicted * excess) + END_BYTES})  # type: ignore[arg-type]


def test_the_plan_fills_the_budget_with_all_that_is_stored() -> None:
    made = planner("bpp", 1.5, broken=2)
    made.solve()
    assert made.findings.total_pixels == 20 * PIXELS  # broken images buy nothing
    assert made.budget_bytes == 1.5 * 20 * PIXELS / 8
    used = sum(choice.predicted_bytes for choice in chosen(made).values()) + made.findings.fixed.sum()
    assert 0.98 * made.budget_bytes < used <= made.budget_bytes


def test_what_came_out_larger_is_taken_from_the_rest() -> None:
    made = planner("bpp", 1.5)
    made.solve()
    before = {i: choice.q for i, choice in chosen(made).items()}
    commits = [committed(made, shard, excess=1.1) for shard in (0, 1)]
    made.solve(commits)
    assert made.factor == pytest.approx(1.1, abs=0.01)
    assert all(chosen(made)[i].q < before[i] for i in range(8, 20))
    left = made.budget_bytes - sum(record.counted_bytes for record in commits) - 3 * END_BYTES  # type: ignore[operator]
    assert sum(made.predicted_coded(shard) for shard in (2, 3, 4)) * made.factor <= left


def test_running_shards_are_reserved() -> None:
    made = planner("bpp", 1.5)
    made.solve()
    before = {i: choice.q for i, choice in chosen(made).items()}
    made.promise(1)
    made.solve(reserved=[1])
    after = {i: choice.q for i, choice in chosen(made).items()}
    assert max(abs(after[i] - before[i]) for i in before) <= 0.125  # one upgrade may fit that did not before


def test_an_impossible_budget_is_refused_at_the_start_and_survived_later() -> None:
    with pytest.raises(BudgetInfeasibleError, match=r"least possible is .* bytes \(--bytes"):
        planner("bytes", 5000).solve()
    with pytest.raises(BudgetInfeasibleError, match="at 50 dB or better"):
        planner("bpp", 2.0, min_psnr_db=50.0).solve()
    made = planner("bpp", 1.5)
    made.solve()
    made.solve([committed(made, 0, excess=9.0)])
    assert made.missed is not None
    assert all(chosen(made)[i].q == 0 for i in range(4, 20))


def test_quality_targets_need_no_bytes() -> None:
    made = planner("psnr", 40.0)
    made.solve()
    assert made.budget_bytes is None
    assert {round(choice.q, 1) for choice in chosen(made).values()} == {round((np.log(80) - np.log(255**2 / 1e4)) / 0.4, 1)}


def test_a_folder_without_any_image_has_a_plan() -> None:
    made = planner("bpp", 1.0, count=0, broken=3)
    with pytest.raises(BudgetInfeasibleError):
        made.solve()
    made = planner("bytes", 1e6, count=0, broken=3)
    made.solve()
    assert made.forecast().allocation.total_bytes == 0
    assert outlook(made.findings) == []


def test_an_incomplete_analysis_is_refused() -> None:
    with pytest.raises(ManifestError, match="one row for each image"):
        Planner(CompressConfig(budget=Budget(kind="bpp", value=1.0)), np.zeros(4, np.int32)).add(0, analysis(3))
    with pytest.raises(ManifestError, match="missing"):
        Planner(CompressConfig(budget=Budget(kind="bpp", value=1.0)), np.zeros(4, np.int32)).solve()


@pytest.mark.parametrize("curve", [[np.nan] * 12, [-1.0] * 12, [5.0]])
def test_an_impossible_analysis_is_refused(curve: list[float]) -> None:
    table = analysis(4)
    bad = table.set_column(table.column_names.index("bytes"), "bytes", pa.array([curve] * 4, pa.list_(pa.float64())))
    with pytest.raises(ManifestError, match="impossible curves"):
        Planner(CompressConfig(budget=Budget(kind="bpp", value=1.0)), np.zeros(4, np.int32)).add(0, bad)


def test_large_sets_keep_no_curves_and_come_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    small = planner("bpp", 6.0, count=400)
    small.solve()
    monkeypatch.setattr("pipeline.plan.findings.CACHED_IMAGES", 100)
    large = planner("bpp", 6.0, count=400)
    large.solve()
    assert not large.findings.in_memory
    assert large.predicted_total() == pytest.approx(small.predicted_total(), rel=2e-3)
    commits = [committed(large, shard, excess=1.1) for shard in range(10)]
    sent(large, 10, 11)
    large.solve(commits, [10, 11])
    assert large.factor > 1.05
    total = sum(record.counted_bytes for record in commits) + large.findings.fixed[10:].sum()
    total += sum(large.predicted_coded(shard) for shard in range(10, 100)) * large.factor
    assert total == pytest.approx(large.budget_bytes, rel=1e-3)
    assert large.table().num_rows == 0
    assert float(large.table().schema.metadata[b"msinn.threshold"]) == large.threshold


def preferences(text: str, count: int = 20, **options: Any) -> Preferences:
    config = CompressConfig(budget=Budget(kind="bpp", value=1.5), **options)
    return Preferences.from_table(config, text.encode(), [f"image{i}" for i in range(count)], "table")


def test_single_images_have_weights_and_limits() -> None:
    asked = preferences("name,weight,min_psnr_db,max_q\nimage3,50,,\nimage7,,48,\nimage9,,,1\n", min_psnr_db=30.0)
    plain, made = planner("bpp", 1.5), planner("bpp", 1.5, preferences=asked)
    plain.solve()
    made.solve()
    before, after = chosen(plain), chosen(made)
    assert after[3].q > before[3].q
    assert after[7].mse <= 255**2 * 10**-4.8 < before[7].mse
    assert after[9].q == 1 < before[9].q
    assert asked.min_psnr_db(np.array([7, 8])) == [48.0, 30.0]
    assert [bound.tolist() for bound in asked.q_range(np.array([8, 9]), 11.0)] == [[0, 0], [11, 1]]


def test_caps_bound_the_trim_and_names_may_be_numbers() -> None:
    asked = preferences("name,max_psnr_db\nimage3,36\n")
    made = planner("bpp", 6.0, preferences=asked)
    made.solve()
    assert chosen(made)[3].max_q == chosen(made)[3].q < 6
    assert chosen(made)[4].max_q == np.inf
    config = CompressConfig(budget=Budget(kind="bpp", value=1.5))
    numbered = Preferences.from_table(config, b"name,weight\n0001,5\n", ["0000", "0001"], "table")
    assert numbered.weights(np.arange(2)).tolist() == [1, 5]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,colour\nimage1,red\n", "a column 'colour' that means nothing here; it takes `name` and any of weight"),
        ("name,weight\nimage1,1\nimage1,2\n", "twice"),
        ("name,weight\nimage1,1\nimage99,2\n", "names 1 images that are not in the source, image99"),
        ("name,weight,weight\nimage1,1,2\n", "columns twice"),
        ("name,weight\nimage1,0\n", "takes 1e-06 to"),
        ("name,min_psnr_db\nimage1,120\n", "takes 1e-09 to 90"),
        ("name,weight\nimage1,heavy\n", "other things than numbers"),
        ("", "neither Parquet nor CSV"),
        ("PAR1 no parquet", "neither Parquet nor CSV"),
    ],
)
def test_tables_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        preferences(text)


@pytest.mark.parametrize(
    ("budget", "options", "message"),
    [
        (("bpp", float("inf")), {}, "above 0"),
        (("psnr", 95.0), {}, "above 90 dB"),
        (("bpp", 1.0), {"min_psnr_db": -3.0}, "--min-psnr"),
        (("psnr", 30.0), {"min_psnr_db": 35.0}, "above --psnr"),
        (("bpp", 1.0), {"objective": "ssim"}, "no objective"),
        (("bpp", 1.0), {"min_q": 5.0, "max_q": 3.0}, "above the largest"),
        (("psnr", 30.0), {"max_bpp": 1.0}, "--max-bpp contradicts --psnr"),
        (("q", 3.0), {"min_q": 5.0}, "--min-q contradicts --q"),
        (("q", 3.0), {"preferences_sha256": "00"}, "divides a budget"),
        (("bpp", 1.0), {"max_pixels": 0}, "--max-pixels"),
        (("bpp", 1.0), {"device": "tpu"}, "no device"),
    ],
)
def test_contradictory_requests_are_refused(budget: tuple[str, float], options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CompressConfig(budget=Budget(kind=budget[0], value=budget[1]), **options)  # type: ignore[arg-type]


def test_configurations_survive_json() -> None:
    config = CompressConfig(budget=Budget(kind="ratio", value=12.0), min_psnr_db=31.5, image_column="img")
    assert CompressConfig.from_json(config.to_json()) == config
    with pytest.raises(UsageError, match="another version"):
        CompressConfig.from_json({**config.to_json(), "unknown": 1})


@pytest.mark.parametrize("objective", ["mse", "psnr", "minimum"])
def test_the_outlook_rises_from_the_least_budget_to_the_most(objective: str) -> None:
    made = planner("bpp", 1.5, objective=objective, min_psnr_db=30.0)  # type: ignore[arg-type]
    points = outlook(made.findings, 7)
    for field in ("counted_bytes", "bpp", "pooled_psnr_db", "mean_psnr_db", "p1_psnr_db"):
        values = [getattr(point, field) for point in points]
        assert values == sorted(values), field
    assert points[0].p1_psnr_db >= 30.0
    assert points[0].counted_bytes < 0.5 * points[-1].counted_bytes
    # What it says of a budget is what planning at that budget gives.
    middle = points[3]
    same = planner("bytes", middle.counted_bytes + 1, objective=objective, min_psnr_db=30.0)  # type: ignore[arg-type]
    same.solve()
    assert same.predicted_total() == pytest.approx(middle.counted_bytes, rel=1e-3)
    assert np.mean([choice.mse for choice in chosen(same).values()]) == pytest.approx(255**2 * 10 ** (-middle.pooled_psnr_db / 10), rel=5e-3)


@pytest.mark.parametrize("objective", ["mse", "psnr", "minimum"])
def test_a_price_chooses_what_the_total_did_that_came_to_it(objective: str) -> None:
    total = planner("bytes", 60_000.0, objective=objective)  # type: ignore[arg-type]
    total.solve()
    price = planner("slope", float(np.exp(total.threshold)), objective=objective)  # type: ignore[arg-type]
    price.solve()
    assert price.budget_bytes is None
    assert [choice.q for choice in chosen(price).values()] == [choice.q for choice in chosen(total).values()]
    assert price.multiplier == pytest.approx(total.multiplier)
    most = planner("slope", 0.0)
    most.solve()
    # Where nothing is spared an image is its file, if that is smaller than the best coding.
    assert {choice.q for choice in chosen(most).values()} <= {11.0, np.inf}


def test_a_total_of_a_grown_archive_leaves_the_new_images_what_the_old_do_not_take() -> None:
    made = planner("bpp", 2.0)
    made.older = Older(counted_bytes=50_000, pixels=20 * PIXELS, source_bytes=0)
    assert made.budget_bytes == 2.0 * 40 * PIXELS / 8 - 50_000
    made.solve()
    assert made.predicted_total() <= made.budget_bytes
    made.older = Older(counted_bytes=199_000, pixels=20 * PIXELS, source_bytes=0)
    with pytest.raises(BudgetInfeasibleError, match=r"1,000 bytes for the new images, beside the 199,000 of the older ones.*--bpp 2\.\d"):
        made.solve()
