"""`msinn eval`: our models and their peers on the same images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

DEFAULT_PEERS = ("jpeg", "webp", "avif", "avif-6", "jxl", "vvc")


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    p = verbs.add_parser("eval", help="measure models and other codecs on images: real files, decoded; BD-rates, table, plot")
    p.add_argument("images", metavar="IMAGES", help="folder, tar, Parquet or glob")
    p.add_argument("--model", nargs="+", default=["msinn-lite"], metavar="M", help="shipped names, SHA-256 or paths")
    p.add_argument("--q", nargs="+", type=float, metavar="Q", help="rates (default: every anchor and three between)")
    p.add_argument(
        "--peers", nargs="*", default=list(DEFAULT_PEERS), choices=DEFAULT_PEERS, help="codecs to run beside ours (none: --peers with nothing)"
    )
    p.add_argument("--reference", metavar="FILE", help="JSON of curves measured elsewhere on the same images")
    p.add_argument("--out", default="eval-out", metavar="DIR", help="results.parquet (re-used by the next run), report.md, curves.png")
    p.add_argument("--limit", type=int, metavar="N", help="only the first N files")
    p.add_argument("--device", default="cpu")
    p.add_argument("--threads", type=int, default=1, metavar="N", help="of our codec; the others run on one (default 1)")
    p.add_argument("--keep-files", action="store_true", help="leave the coded files in DIR/files")
    p.set_defaults(command=_eval)


def _eval(arguments: argparse.Namespace) -> int:
    import torch

    from msinn_core.codec import Codec
    from msinn_core.model_file import load_model
    from pipeline.errors import UsageError
    from pipeline.lab import evaluation
    from pipeline.lab.peers import available
    from pipeline.lab.reference import read_reference

    torch.set_num_threads(arguments.threads)
    found, absent = available()
    for name in arguments.peers:
        if name in absent:
            print(f"{name} is not measured: {absent[name]}", file=sys.stderr)
    models = []
    for which in arguments.model:
        codec = Codec(load_model(which), device=arguments.device, threads=arguments.threads, max_pixels=200_000_000)
        top = codec.q_max
        rates = arguments.q or sorted({*range(int(top) + 1), 0.5, top // 2 + 0.5, top - 0.5})
        models.append(evaluation.MsinnPeer(codec, tuple(codec.quantise_q(q) for q in rates), f"{arguments.device}, {arguments.threads} thread(s)"))
    if len({model.name for model in models}) < len(models):
        raise UsageError("two of the models have one name; import one of them under another name")
    reference = read_reference(Path(arguments.reference)) if arguments.reference else None
    warning = ""
    if reference and reference.pictures:
        reference.check(arguments.images, evaluation.pictures(arguments.images, arguments.limit))
    elif reference:
        warning = f"{reference.path} does not say on which images its curves were measured: compare with them only what was measured on the same."
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    measured = evaluation.evaluate(
        evaluation.pictures(arguments.images, arguments.limit),
        [*models, *(found[name] for name in arguments.peers if name in found)],
        out,
        keep_files=arguments.keep_files,
        said=lambda text: print(text, file=sys.stderr, flush=True),
    )
    means = evaluation.averages(measured)
    versions = {row.codec: row.version for row in measured}
    # What was measured here goes before what a file says of the same codec.
    references = {name: curve for name, curve in reference.curves.items() if name not in means} if reference else {}
    curves = {codec: [(point.bpp, point.psnr_db) for point in points] for codec, points in means.items()}
    tables = {
        model.name: evaluation.bd_table(curves[model.name], {**{n: c for n, c in curves.items() if n != model.name and len(c) > 1}, **references})
        for model in models
        if len(curves[model.name]) > 1
    }
    text = evaluation.markdown(means, versions, tables, warning)
    (out / "report.md").write_text(text)
    try:
        evaluation.draw(means, references, [model.name for model in models], out / "curves.png")
    except ImportError:
        print("curves.png is not drawn: matplotlib is missing (pip install 'msinn[train]')", file=sys.stderr)
    print(text)
    print(f"rows: {out / 'results.parquet'}; this text: {out / 'report.md'}; plot: {out / 'curves.png'}", file=sys.stderr)
    return 0
