"""`msinn tune`: a model that learns a dataset."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.arguments import add_source_storage, add_storage, minutes
from jobs.exits import EXIT_SOME_FAILED

if TYPE_CHECKING:
    from msinn_core.model_file import LoadedModel
    from pipeline.lab.sample import Sample
    from pipeline.lab.tuned import Candidate, Tuned


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    p = verbs.add_parser(
        "tune",
        help="learn a dataset: a model of its own, compared with the general one on held-out images",
        description="The same command again goes on after an interrupt; Ctrl-C ends the training and packs what was learned. "
        "The model is derived from the images, and goes where their archive goes.",
    )
    p.add_argument("source", metavar="SRC", help="as for compress")
    add_source_storage(p)
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("-o", "--output", metavar="OUT.safetensors", help="the model")
    what.add_argument("--check", metavar="ARCHIVE", help="learn nothing: say whether the archive's models still fit the images of SRC")
    add_storage(p, "check")
    p.add_argument("--minutes", type=minutes, default=30.0, metavar="M", help="of training; packing and comparing take a few more (default: 30)")
    rates = p.add_mutually_exclusive_group()
    rates.add_argument("--bpp", type=float, metavar="X", help="for archives of so many bits per pixel (default: for all rates)")
    rates.add_argument("--psnr", type=float, metavar="P", help="for archives of images at P dB")
    rates.add_argument("--q-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="for rate indexes in this range")
    p.add_argument("--model", default="msinn-lite", metavar="M", help="the general model to compare with (default: msinn-lite)")
    p.add_argument("--start", metavar="FILE", help="float parameters to begin from (default: those of the model in use)")
    p.add_argument("--name", help="name of the model (default: the output's)")
    p.add_argument("--seed", type=int, default=1, metavar="N")
    p.add_argument("--device", choices=("cpu", "cuda", "auto"), default="cpu")
    p.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    p.add_argument("--keep", action="store_true", help="write the model even where it is not certain to gain")
    p.set_defaults(command=_tune)


def _tune(arguments: argparse.Namespace) -> int:
    from pipeline.lab.sample import candidates, draw
    from pipeline.sources import scan

    if arguments.output is not None and Path(arguments.output).suffix != ".safetensors":
        from pipeline.errors import UsageError

        raise UsageError(f"{arguments.output} must end in .safetensors")
    sample = draw(candidates(scan(arguments.source).records, arguments.seed), seed=arguments.seed, checking=arguments.check is not None)
    return _check(arguments, sample) if arguments.check is not None else _learn(arguments, sample)


def _said(arguments: argparse.Namespace, text: str) -> None:
    if not arguments.quiet:
        print(text, file=sys.stderr, flush=True)


def _check(arguments: argparse.Namespace, sample: Sample) -> int:
    import torch

    from pipeline.lab.fit import check

    found = check(arguments.check, sample, threads=arguments.threads or torch.get_num_threads(), said=lambda text: _said(arguments, text))
    before = f"; when they were learned: {found.before:+.1f} %" if found.before is not None else ""
    verdict = "they fit" if found.fits else "they no longer fit: learn these images anew"
    print(f"the archive's models on {found.images} of these images: BD-rate {found.now or 'unknown'} against the general one{before}: {verdict}")
    return 0 if found.fits else EXIT_SOME_FAILED


def _learn(arguments: argparse.Namespace, sample: Sample) -> int:
    import torch

    from msinn_core.model_file import load_model
    from pipeline.lab.stopping import stop_on_signals
    from pipeline.lab.tuned import FileState
    from pipeline.lab.tuning import TuneConfig, Tuning, start_of, usable_device

    output, general = Path(arguments.output), load_model(arguments.model)
    start = start_of(general, arguments.start)
    device = usable_device(arguments.device, lambda text: _said(arguments, text))
    config = TuneConfig(
        name=arguments.name or output.stem,
        minutes=arguments.minutes,
        q_range=_q_range(arguments, general, sample),
        seed=arguments.seed,
        device=device,
        threads=arguments.threads or torch.get_num_threads(),
    )
    left_out = "".join(f", {count} {reason}" for reason, count in sorted(sample.left_out.items()))
    held_out = f"{len(sample.held_out)} held out{left_out}"
    _said(arguments, f"{sample.num_train} images to learn from ({len(sample.tiles)} tiles of {sample.tile}), {held_out}")
    tuning = Tuning(sample, general, start, config, FileState(output.with_suffix(".tuning")), lambda text: _said(arguments, text))
    with stop_on_signals() as stopping:
        steps = tuning.train(lambda: bool(stopping))
    _said(arguments, f"{steps} steps")
    tuned = tuning.compare()
    for candidate in tuned.candidates:
        print(_line(tuned, candidate, general))
    chosen = tuned.best or (min(tuned.candidates, key=lambda c: c.gain.percent if c.gain else 0.0) if arguments.keep else None)
    if chosen is None:
        print(f"{general.name} stays the better choice for these images: nothing was written (--keep writes the model all the same)", file=sys.stderr)
        return EXIT_SOME_FAILED
    _write(output, chosen.data)
    tuning.clear()
    print(f"{output}: {config.name}, {chosen.kind}, {load_model(str(output)).sha256}")
    return 0


def _q_range(arguments: argparse.Namespace, general: LoadedModel, sample: Sample) -> tuple[float, float] | None:
    """Rates that the archive will use; None for all."""
    from msinn_core.codec import Codec
    from pipeline.errors import UsageError
    from pipeline.lab.expected import expected
    from pipeline.plan.config import Budget

    if arguments.q_range is not None:
        low, high = arguments.q_range
        if not 0 <= low <= high <= general.config.q_max:
            raise UsageError(f"--q-range takes two rising values from 0 to {general.config.q_max:g}")
        return low, high
    for kind in ("bpp", "psnr"):
        if (value := getattr(arguments, kind)) is not None:
            found = expected(Budget(kind=kind, value=value), Codec(general), sample.train, pixels=1e6, source_bytes=0).q_range
            _said(arguments, f"--{kind} {value:g}: rates {found[0]:.1f} to {found[1]:.1f}")
            return found
    return None


def _line(tuned: Tuned, candidate: Candidate, general: LoadedModel) -> str:
    from pipeline.lab.tuned import stored_bytes

    even = tuned.break_even_bytes(candidate)
    pays = (
        "not certain to gain"
        if even is None
        else f"pays for its {stored_bytes(candidate.models):,} bytes in archives of more than {even / 1e6:,.0f} MB"
    )
    return f"{candidate.kind:<8} BD-rate {candidate.gain or 'unknown'} against {general.name}; {pays}"


def _write(output: Path, data: bytes) -> None:
    from pipeline.errors import StorageError
    from pipeline.lab.training_files import publish

    try:
        publish(output, data)
    except OSError as error:
        raise StorageError(f"cannot write {output}: {error.strerror}") from error
