"""BD-rates, averages, peers, and the evaluation of real files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from msinn_core.codec import Codec
from msinn_core.errors import ConfigError
from msinn_core.metrics import bd_rate, mse, psnr_db
from pipeline.errors import UsageError
from pipeline.formats.records import rows_of
from pipeline.lab import evaluation
from pipeline.lab.peers import available
from pipeline.lab.reference import Reference, pixels_digest, read_reference

CURVE = [(0.25, 30.0), (0.5, 33.0), (1.0, 36.5), (2.0, 40.0), (3.0, 43.0)]


@pytest.mark.parametrize("method", ["pchip", "akima"])
@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25])
def test_a_curve_at_a_fixed_factor_has_that_bd_rate(method: str, factor: float) -> None:
    scaled = [(rate * factor, quality) for rate, quality in reversed(CURVE)]
    assert bd_rate(CURVE, scaled, method=method) == pytest.approx(100 * (factor - 1), abs=1e-9)
    assert bd_rate(CURVE, scaled, window=(33.0, 36.0), method=method) == pytest.approx(100 * (factor - 1), abs=1e-9)


def test_bd_rate_outside_the_overlap_is_none_and_waste_is_left_out() -> None:
    assert bd_rate(CURVE, [(9.0, 50.0), (10.0, 51.0)]) is None
    assert bd_rate(CURVE, CURVE, window=(28.0, 31.0)) is None
    assert bd_rate(CURVE, [*CURVE, (2.5, 39.0)]) == pytest.approx(0, abs=1e-9)
    assert bd_rate(CURVE, CURVE[:1]) is None
    assert bd_rate([(1.0, 40.0), (2.0, 39.0)], CURVE) is None
    with pytest.raises(ConfigError, match="cubic"):
        bd_rate(CURVE, CURVE, method="cubic")


def test_every_peer_codes_and_decodes_better_with_a_better_setting(photo: NDArray[np.uint8]) -> None:
    peers, absent = available()
    assert {"jpeg", "webp", "avif", "avif-6", "jxl"} <= set(peers)
    assert set(absent) == {"vvc"}
    pixels = np.ascontiguousarray(photo[:128, :192])
    for peer in peers.values():
        sizes, quality = [], []
        for setting in (peer.settings[0], peer.settings[-1]):
            data = peer.encode(pixels, setting)
            sizes.append(len(data))
            quality.append(psnr_db(mse(pixels, peer.decode(data))))
        assert sizes[0] < sizes[1], peer.name
        assert quality[0] + 5 < quality[1], peer.name
        assert peer.version


def test_figures_come_from_files_and_are_not_measured_twice(codec: Codec, photo: NDArray[np.uint8], tmp_path: Path) -> None:
    pixels = np.ascontiguousarray(photo[:96, :160])
    ours = evaluation.MsinnPeer(codec, (2.0, 6.0))
    jpeg = available()[0]["jpeg"]
    said: list[str] = []
    measured = evaluation.evaluate([("a", pixels)], [ours, jpeg], tmp_path, keep_files=True, said=said.append)
    assert len(measured) == 2 + len(jpeg.settings)
    file = tmp_path / "files" / codec.model.name / "6" / "00000.msn"
    row = next(row for row in measured if row.codec == codec.model.name and row.setting == 6)
    assert row.bpp == pytest.approx(8 * file.stat().st_size / (96 * 160))
    assert row.psnr_db == pytest.approx(psnr_db(mse(codec.decode(file.read_bytes())[0].pixels, pixels)))
    again = evaluation.evaluate([("a", pixels)], [ours], tmp_path, keep_files=False, said=said.append)
    assert said[-1].startswith("1: a, 0 files")
    assert again == measured[:2]
    other = evaluation.evaluate([("b", pixels[:, ::-1].copy())], [ours], tmp_path, keep_files=False, said=said.append)
    assert len(other) == 2
    assert pq.read_table(tmp_path / "results.parquet").num_rows == len(measured) + 2
    means = evaluation.averages(measured)
    curves = {name: [(p.bpp, p.psnr_db) for p in points] for name, points in means.items()}
    against = evaluation.bd_table(curves[codec.model.name], {"JPEG": curves["JPEG"]})
    text = evaluation.markdown(means, {"JPEG": jpeg.version}, {codec.model.name: against})
    assert re.search(r"\| JPEG \| 0\.\d\d \| -", text)  # seconds, and fewer bits than JPEG
    assert "**careful**" not in text
    assert "**careful**" in evaluation.markdown(means, {"JPEG": jpeg.version}, {codec.model.name: against}, "careful")
    evaluation.draw(means, {"old": CURVE}, [codec.model.name], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "text",
    ["{", "{}", '{"codecs": {"x": {"bpp": [1]}}}', '{"codecs": {"x": {"bpp": [1], "psnr_rgb": [1, 2]}}}', '{"codecs": {}, "pixels_sha256": 3}'],
)
def test_a_bad_reference_file_is_one_clear_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="no file of reference curves"):
        read_reference(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_reference(tmp_path / "absent.json")
    path.write_text(json.dumps({"codecs": {"x": {"bpp": [1, 2], "psnr_rgb": [30, 35]}}}))
    assert read_reference(path).curves == {"x": [(1.0, 30.0), (2.0, 35.0)]}


def test_a_reference_takes_its_own_pictures_under_any_name_and_no_others() -> None:
    images = [np.full((4, 6, 3), i, np.uint8) for i in range(3)]
    reference = Reference(Path("r.json"), {}, {f"{i}.png": pixels_digest(image) for i, image in enumerate(images)})
    reference.check("D", [(f"other-{i}", image) for i, image in reversed(list(enumerate(images)))])
    assert pixels_digest(images[0]) != pixels_digest(images[0].reshape(6, 4, 3))
    changed = images[1].copy()
    changed[0, 0, 0] ^= 1
    for given, says in (
        ([images[0], changed, images[2]], r"^D lacks 1 of the 3 pictures \(1.png for one\) and holds 1 other \(n1 for one\): .*r.json"),
        (images[:1], r"^D lacks 2 of the 3 pictures \(1.png for one\): "),
        ([*images, images[2], changed], r"^D holds 2 others \(n3 for one\): "),
    ):
        with pytest.raises(UsageError, match=says):
            reference.check("D", [(f"n{i}", image) for i, image in enumerate(given)])


def test_the_shipped_curves_and_our_report_are_of_the_same_pictures() -> None:
    folder = Path(__file__).parents[3] / "infra" / "reference"
    rows = pq.read_table(folder / "kodak-eval" / "results.parquet", columns=["image", "pixels_sha256"]).to_pylist()
    pictures = read_reference(folder / "kodak.json").pictures
    assert len(pictures) == 24
    assert pictures == {row["image"]: row["pixels_sha256"] for row in rows}


@pytest.mark.parametrize(("codec", "detail"), [("AVIF", "speed 4"), ("AVIF speed 6", "speed 6")])
def test_the_report_on_kodak_has_avif_at_both_speeds(codec: str, detail: str) -> None:
    folder = Path(__file__).parents[3] / "infra" / "reference"
    table = pq.read_table(folder / "kodak-eval" / "results.parquet")
    rows = [row for row in rows_of(evaluation.Measurement, table) if row.codec == codec]
    assert all(detail in row.version for row in rows)
    points = evaluation.averages(rows)[codec]
    assert len(rows) == 24 * len(points)
    if codec in (curves := read_reference(folder / "kodak.json").curves):
        assert curves[codec] == [(pytest.approx(p.bpp, abs=1e-5), pytest.approx(p.psnr_db, abs=1e-4)) for p in points]
