"""What models that learned a kind gain on held-out pictures of it: files of them, of the general model, of JPEG XL and of AVIF, decoded again.

    python -m infra.kinds.measure --held KINDS/charts/held --general msinn-lite --tuned charts.safetensors -o charts.json

Prints tables of BD-rates (whole overlap, then windows of PSNR) with 95 % intervals over pictures, and writes them, the curves and what a model says
of itself as JSON. Every file's figures lie in `charts-rows/results.parquet` (`--rows`): another model, or the same command after an interrupt,
measures only what is new.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msinn_core.codec import Codec
from msinn_core.model_file import LoadedModel, card_of, load_model
from pipeline.errors import PipelineError, UsageError
from pipeline.lab.comparison import Gain, Measured, gain
from pipeline.lab.evaluation import WINDOWS_DB, Measurement, MsinnPeer, evaluate, pictures
from pipeline.lab.models import compared
from pipeline.lab.peers import Peer, Pixels, available
from pipeline.lab.tuned import stored_bytes

OTHERS = ("jxl", "avif", "avif-6")
"""Codecs that models are compared with beside the general one, by the short names of `peers.available`."""

Gains = dict[str, Gain | None]
"""By window, `whole` the first."""


def chosen(source: str, count: int, side: int) -> list[tuple[str, Pixels]]:
    """Pictures at equal distances over a source, of each the centre of at most `side` x `side` pixels."""
    found = list(pictures(source))
    every = [found[i] for i in np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)]
    return [(name, _centre(pixels, side)) for name, pixels in every]


def _centre(pixels: Pixels, side: int) -> Pixels:
    top, left = (max(0, (whole - side) // 2) for whole in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def measured(rows: Sequence[Measurement], codec: str) -> Measured:
    """The rows of one codec as arrays, pictures by settings."""
    own = [row for row in rows if row.codec == codec]
    settings = list(dict.fromkeys(row.setting for row in own))
    shape = (-1, len(settings))
    sizes, quality = np.array([row.file_bytes for row in own], float).reshape(shape), np.array([row.psnr_db for row in own]).reshape(shape)
    pixels = np.array([row.width * row.height for row in own], float).reshape(shape)[:, 0]
    return Measured(np.array(settings), sizes, quality, pixels)


def gains(against: Measured, own: Measured) -> Gains:
    """Over the whole overlap and in every window that both cover."""
    found: Gains = {"whole": gain(against, own)}
    return found | {f"{low}-{high} dB": gain(against, own, window=(low, high)) for low, high in WINDOWS_DB}


def compare(rows: Sequence[Measurement], general: LoadedModel, tuned: dict[str, LoadedModel]) -> dict[str, Any]:
    """What `OUT.json` holds: `pictures`, `curves`, `general` and `tuned`, each model against all other codecs."""
    codecs = list(dict.fromkeys(row.codec for row in rows))
    figures = {codec: measured(rows, codec) for codec in codecs}
    others = [codec for codec in codecs if codec not in (general.name, *tuned)]

    def against(model: str, names: Sequence[str]) -> dict[str, Any]:
        every = {name: gains(figures[name], figures[model]) for name in names}
        return {name: {window: g and [g.percent, g.low, g.high] for window, g in of.items()} for name, of in every.items()}

    models = {}
    for name, model in tuned.items():
        whole = gain(figures[general.name], figures[name])
        models[name] = {
            "sha256": model.sha256,
            "bytes": compared(general, model).bytes,
            "pays_above_bytes": whole and whole.pays_above(stored_bytes((model.data,))),
            "card": card_of(model),
            "against": against(name, [general.name, *others]),
        }
    return {
        "pictures": len({row.image for row in rows}),
        "pixels": int(figures[general.name].pixels.sum()),
        "versions": {row.codec: row.version for row in rows},
        "curves": {codec: {"setting": f.rates.tolist(), "bpp_psnr_db": f.curve()} for codec, f in figures.items()},
        "general": {"name": general.name, "sha256": general.sha256, "against": against(general.name, others)},
        "tuned": models,
    }


def markdown(result: dict[str, Any]) -> str:
    """Two tables: BD-rates of every model against every codec, and what the tuned models took and when they pay."""
    general = result["general"]
    tables = {general["name"]: general["against"], **{name: model["against"] for name, model in result["tuned"].items()}}
    windows = ["whole", *(f"{low}-{high} dB" for low, high in WINDOWS_DB)]
    used = [w for w in windows if any(of[w] for table in tables.values() for of in table.values())]
    lines = [f"{result['pictures']} pictures, {result['pixels'] / 1e6:.1f} Mpx. BD-rate in %, 95 % interval over pictures.", ""]
    lines += [f"| model | against | {' | '.join(used)} |", "| --- " * (2 + len(used)) + "|"]
    for model, table in tables.items():
        for other, of in table.items():
            lines.append(f"| {model} | {other} | {' | '.join(_shown(of[window]) for window in used)} |")
    lines += [
        "",
        "Bytes: of the model's file, in an archive, and there as a difference to the general model. It pays in archives of more bytes than stated.",
    ]
    lines += ["", "| model | learned | minutes | steps | images | file | in an archive | as a difference | pays above |", "| --- " * 9 + "|"]
    for name, model in result["tuned"].items():
        card, above = model["card"], model["pays_above_bytes"]
        said = " | ".join(str(card.get(key, "")) for key in ("learned", "minutes", "steps", "images"))
        pays = "not certain to gain" if above is None else f"{above / 1e6:,.0f} MB"
        sizes = " | ".join(f"{size:,}" if size else "" for size in (model["bytes"][key] for key in ("file", "alone", "difference")))
        lines.append(f"| {name} | {said} | {sizes} | {pays} |")
    return "\n".join(lines) + "\n"


def _shown(value: list[float] | None) -> str:
    return "" if value is None else f"{value[0]:+.1f} ({value[1]:+.1f} to {value[2]:+.1f})"


def peer_of(model: LoadedModel, name: str, threads: int) -> MsinnPeer:
    """A model at its whole rates, under a name of its own."""
    codec = Codec(model, threads=threads)
    peer = MsinnPeer(codec, tuple(float(q) for q in range(int(codec.q_max) + 1)), f"cpu, {threads} thread(s)")
    peer.name = name
    return peer


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, write the JSON, print the tables.

    Raises:
        PipelineError: Nothing to measure on, or a model that cannot be read.
    """
    general, tuned = load_model(arguments.general), {Path(path).stem: load_model(path) for path in arguments.tuned}
    if len({general.name, *tuned}) <= len(arguments.tuned):
        raise UsageError("two of the models have one name: name their files apart")
    found, absent = available()
    for name in arguments.peers:
        if name in absent:
            print(f"{name} is not measured: {absent[name]}", file=sys.stderr)
    ours = [peer_of(general, general.name, arguments.threads), *(peer_of(model, name, arguments.threads) for name, model in tuned.items())]
    peers: list[Peer] = [*ours, *(found[name] for name in arguments.peers if name in found)]
    folder = arguments.rows or arguments.output.with_name(f"{arguments.output.stem}-rows")
    folder.mkdir(parents=True, exist_ok=True)

    def said(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    rows = evaluate(chosen(arguments.held, arguments.count, arguments.side), peers, folder, keep_files=False, said=said)
    result = {"held": arguments.held, "absent": {name: absent[name] for name in arguments.peers if name in absent}, **compare(rows, general, tuned)}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))
    return result


def main() -> int:
    """The command; 2 with one sentence for what cannot be measured."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--held", required=True, metavar="DIR", help="held-out pictures")
    p.add_argument("--general", default="msinn-lite", metavar="M")
    p.add_argument("--tuned", nargs="+", action="extend", default=[], metavar="FILE", help="models that learned the kind")
    p.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.json")
    p.add_argument("--count", type=int, default=24, metavar="N", help="pictures (default: 24)")
    p.add_argument("--side", type=int, default=512, metavar="S", help="of their centres that are measured (default: 512)")
    p.add_argument("--peers", nargs="*", default=list(OTHERS), choices=OTHERS, help="codecs to measure beside the models (default: all)")
    p.add_argument("--rows", type=Path, metavar="DIR", help="where every file's figures are kept; what is there is not measured again")
    p.add_argument("--threads", type=int, default=1, metavar="N")
    try:
        run(p.parse_args())
    except PipelineError as error:
        print(f"measure: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
