"""The parts of the audit's page: charts that a few odd values do not spoil, regions, pictures and texts."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from pipeline.plan.outlook import Outlook
from pipeline.read import page_charts, page_html, page_images, page_regions


def bars(chart: str) -> list[int]:
    return [int(count.replace(",", "")) for count in re.findall(r"<rect[^>]*><title>[^<]*: ([\d,]+)</title>", chart)]


def test_one_outlier_does_not_push_all_others_into_one_bar() -> None:
    values = np.append(np.random.default_rng(1).normal(36, 2, 1000), [90.0, 5.0, 6.0])
    axis = page_charts.axis_of(values)
    assert (axis.below, axis.above) == (2, 1)
    assert 25 < axis.low < axis.high < 47
    chart = page_charts.histogram(values, "PSNR", "dB")
    assert sum(bars(chart)) == 1000
    assert len(bars(chart)) > 20
    assert "3 of 1,003 lie outside the axis: 2 below, from 5 dB; 1 above, up to 90 dB" in chart


@pytest.mark.parametrize(
    "values",
    [[3.0], [3.0] * 50, [1.0, 2.0], [1.0] * 99 + [50.0], [float("nan"), float("inf"), 1e308, -1e308, 4.0], [0.0, 1e-9], [-5.0, 900_000.0]],
)
def test_a_histogram_counts_each_value_once_whatever_they_are(values: list[float]) -> None:
    chart = page_charts.histogram(np.array(values), "PSNR", "dB")
    outside = re.search(r"(\d+) of \d+ lies? outside", chart)
    sane = [value for value in values if abs(value) <= 1e6]
    assert sum(bars(chart)) + int(outside[1] if outside else 0) == len(sane)
    places = [float(place) for place in re.findall(r' (?:x|y|width|height|x1|x2|y1|y2)="([^"]*)"', chart)]
    assert all(-1 <= place <= 461 for place in places)
    assert "nan" not in chart
    assert "inf" not in chart.replace("info", "")


def test_nothing_to_draw_is_nothing() -> None:
    assert page_charts.histogram(np.array([np.nan]), "PSNR", "dB") == ""
    assert page_charts.curves([], 1.0, []) == ""
    assert page_charts.curves([Outlook(1, np.nan, 30, 30, 30), Outlook(2, 1e9, 30, 30, 30)], 1.0, []) == ""


def test_floors_are_marked_where_they_are_and_named_where_they_are_not() -> None:
    values = np.linspace(35, 40, 100)
    near = page_charts.histogram(values, "PSNR", "dB", [(33.0, "floor 33")])
    assert 'class="mark"' in near
    assert ">floor 33</text>" in near
    far = page_charts.histogram(values, "PSNR", "dB", [(3.0, "floor 3")])
    assert 'class="mark"' not in far
    assert "floor 3 lies outside the axis" in far


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 7), (0, 1234), (27.02, 50.59), (0.02, 0.021), (-3, 3)])
def test_ticks_are_few_round_and_on_the_axis(low: float, high: float) -> None:
    found = page_charts.ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)
    assert all(tick == int(tick) for tick in page_charts.ticks(low, high, whole=True))


def test_the_curve_shows_where_the_archive_lies() -> None:
    points = [Outlook(1000 * 2**i, 0.1 * 2**i, 28 + 3 * i, 29 + 3 * i, 25 + 3 * i) for i in range(6)]
    chart = page_charts.curves(points, 0.8, [("pooled", 37.0), ("mean", 38.0)])
    lines = [re.findall(r"([\d.-]+),([\d.-]+)", line) for line in re.findall(r'<polyline[^>]*points="([^"]*)"', chart)]
    assert [len(line) for line in lines] == [6, 6, 6]
    assert all(np.diff([float(x) for x, _ in line]).min() > 0 > np.diff([float(y) for _, y in line]).max() for line in lines)
    # 0.8 bits per pixel and 37 dB are the fourth point of the pooled line: the inner drawing begins at 48, 22.
    dot = re.search(r'class="point a" cx="([\d.]+)" cy="([\d.]+)"', chart)
    assert dot is not None
    assert (float(dot[1]) - 48, float(dot[2]) - 22) == pytest.approx([float(value) for value in lines[0][3]], abs=0.2)
    assert "0.8 bits per pixel, pooled 37.00 dB, mean 38.00 dB" in chart


def test_the_bar_is_divided_as_the_bytes_are() -> None:
    bar = page_charts.bar([("msinn", 600.0), ("kept", 200.0)], 1000.0)
    assert re.findall(r'class="[ab]" x="([\d.]+)" y="4" width="([\d.]+)"', bar) == [("0.00", "276.00"), ("276.00", "92.00")]
    assert "800 bytes of a budget of 1,000: 80.00 %" in bar
    assert "no budget" in page_charts.bar([("msinn", 0.0)], None)


@pytest.mark.parametrize("shape", [(700, 500, 3), (700, 500), (257, 1000, 3), (300, 90), (20, 30, 3), (1, 1), (256, 256, 3)])
def test_the_worst_region_is_where_the_errors_are(shape: tuple[int, ...]) -> None:
    original = np.random.default_rng(0).integers(60, 190, shape, dtype=np.uint8)
    decoded = original.copy()
    row, column = (side * 4 // 5 for side in shape[:2])
    decoded[row : row + 9, column : column + 9] += 50
    region = page_regions.worst_region(original, decoded)
    assert (region.height, region.width) == (min(256, shape[0]), min(256, shape[1]))
    assert 0 <= region.top <= shape[0] - region.height
    assert 0 <= region.left <= shape[1] - region.width
    assert np.array_equal(np.argwhere(region.of(original) != region.of(decoded)).shape, np.argwhere(original != decoded).shape)


def test_the_region_is_the_best_of_all_on_its_grid() -> None:
    rng = np.random.default_rng(2)
    original = rng.integers(0, 256, (400, 330), dtype=np.uint8)
    decoded = np.clip(original + rng.normal(0, 8, original.shape) * rng.uniform(0, 1, original.shape), 0, 255).astype(np.uint8)
    squares = np.square(original.astype(int) - decoded)
    best = max(squares[top : top + 64, left : left + 64].sum() for top in range(0, 337, 8) for left in range(0, 267, 8))
    region = page_regions.worst_region(original, decoded, 64)
    assert region.of(squares.astype(np.uint16)).sum() >= best


def test_a_difference_is_black_where_nothing_is_lost() -> None:
    original, decoded = np.full((4, 4, 3), 100, np.uint8), np.full((4, 4, 3), 100, np.uint8)
    decoded[0, 0], decoded[1, 1] = 97, 200
    found = page_regions.difference(original, decoded)
    assert (found[0, 0, 0], found[1, 1, 0], found[2:].max()) == (24, 255, 0)


def test_copies_are_told_from_pictures_that_are_flat() -> None:
    """A series, a smaller copy and a recompressed one show the same; two empty sheets of other colours, whose structure is noise, do not."""
    rng = np.random.default_rng(5)
    photo = np.asarray(Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((300, 200), Image.Resampling.BICUBIC))
    small = np.asarray(Image.fromarray(photo).resize((150, 100), Image.Resampling.BOX))
    noisy = np.clip(photo + rng.normal(0, 6, photo.shape), 0, 255).astype(np.uint8)
    red, blue = (np.clip(np.array(colour) + rng.normal(0, 1, (90, 90, 3)), 0, 255).astype(np.uint8) for colour in ((200, 60, 60), (60, 60, 200)))

    def alike(one: page_regions.Pixels, other: page_regions.Pixels) -> bool:
        return page_regions.signature(one).is_copy(page_regions.signature(other))

    assert alike(photo, photo)
    assert alike(photo, small)
    assert alike(photo, noisy)
    assert not alike(photo, photo[:, ::-1])
    assert not alike(red, blue)
    assert alike(red, np.ascontiguousarray(red[::-1]))


def test_pictures_lie_in_the_page_without_loss() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    address = page_html.data_uri(Image.fromarray(noise))
    kind, _, data = address.partition(",")
    assert kind == "data:image/webp;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), noise)
    # The largest that there is: what `MAX_EMBEDDED_BYTES` and the page's promise rest on.
    assert 3 * page_images.SHOWN * len(address) < page_images.MAX_EMBEDDED_BYTES


def test_texts_are_shown_as_text_and_not_without_end() -> None:
    assert page_html.html("<p>{}", "<b>\x1b&\u202e") == "<p>&lt;b&gt;\\x1b&amp;\\u202e"
    assert page_html.html("{:.1f} {:,}", 1.25, 12345) == "1.2 12,345"
    assert len(page_html.clipped("x" * 10**6)) < 250
    assert page_html.clipped("y" * 10**4 + ".png").endswith(".png")
    assert page_html.clipped("short.png") == "short.png"
