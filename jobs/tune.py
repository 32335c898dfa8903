"""`msinn tune`: a model that learns a dataset."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jobs.exits import EXIT_SOME_FAILED


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    p = verbs.add_parser(
        "tune",
        help="learn a dataset: a model of its own, compared with the general one on held-out images",
        description="The same command again goes on after an interrupt; Ctrl-C ends the training and packs what was learned. "
        "The model is derived from the images, and goes where their archive goes.",
    )
    p.add_argument("source", metavar="SRC", help="as for compress")
    p.add_argument("-o", "--output", required=True, metavar="OUT.safetensors")
    p.add_argument("--minutes", type=float, default=30.0, metavar="M", help="of training; packing and comparing take a few more (default: 30)")
    p.add_argument("--q-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="rate indexes that the archive will use (default: all)")
    p.add_argument("--model", default="msinn-lite", metavar="M", help="the general model to compare with (default: msinn-lite)")
    p.add_argument("--start", metavar="FILE", help="float parameters to begin from (default: those of the model in use)")
    p.add_argument("--name", help="name of the model (default: the output's)")
    p.add_argument("--seed", type=int, default=1, metavar="N")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    p.add_argument("--keep", action="store_true", help="write the model even where it is not certain to gain")
    p.set_defaults(command=_tune)


def _tune(arguments: argparse.Namespace) -> int:
    import torch

    from msinn_core.model_file import load_model, parse_model
    from pipeline.errors import StorageError, UsageError
    from pipeline.lab.sample import draw
    from pipeline.lab.stopping import stop_on_signals
    from pipeline.lab.training_files import publish
    from pipeline.lab.tuned import FileState
    from pipeline.lab.tuning import TuneConfig, Tuning, start_of
    from pipeline.sources import scan

    output = Path(arguments.output)
    if output.suffix != ".safetensors":
        raise UsageError(f"{output} must end in .safetensors")
    if not 0 < arguments.minutes < 1e5:
        raise UsageError(f"--minutes is {arguments.minutes:g}; it takes more than 0")
    general = load_model(arguments.model)
    start = start_of(general, arguments.start)
    if arguments.q_range is not None and not 0 <= arguments.q_range[0] <= arguments.q_range[1] <= general.config.q_max:
        raise UsageError(f"--q-range takes two rising values from 0 to {general.config.q_max:g}")

    def said(text: str) -> None:
        if not arguments.quiet:
            print(text, file=sys.stderr, flush=True)

    config = TuneConfig(
        name=arguments.name or output.stem,
        minutes=arguments.minutes,
        q_range=tuple(arguments.q_range) if arguments.q_range else None,
        seed=arguments.seed,
        device=arguments.device,
        threads=arguments.threads or torch.get_num_threads(),
    )
    sample = draw(scan(arguments.source).records, seed=config.seed)
    left_out = "".join(f", {count} {reason}" for reason, count in sorted(sample.left_out.items()))
    said(f"{sample.num_train} images to learn from ({len(sample.tiles)} tiles of {sample.tile}), {len(sample.held_out)} held out{left_out}")
    tuning = Tuning(sample, general, start, config, FileState(output.with_suffix(".tuning")), said)
    with stop_on_signals() as stopping:
        steps = tuning.train(lambda: bool(stopping))
    said(f"{steps} steps")
    tuned = tuning.compare()
    for candidate in tuned.candidates:
        even = tuned.break_even_bytes(candidate)
        pays = "not certain to gain" if even is None else f"pays for its {len(candidate.data):,} bytes in archives of more than {even / 1e6:,.0f} MB"
        print(f"{candidate.kind:<8} BD-rate {candidate.gain or 'unknown'} against {general.name}; {pays}")
    chosen = tuned.best or (min(tuned.candidates, key=lambda c: c.gain.percent if c.gain else 0.0) if arguments.keep else None)
    if chosen is None:
        print(f"{general.name} stays the better choice for these images: nothing was written (--keep writes the model all the same)", file=sys.stderr)
        return EXIT_SOME_FAILED
    try:
        publish(output, chosen.data)
    except OSError as error:
        raise StorageError(f"cannot write {output}: {error.strerror}") from error
    tuning.clear()
    print(f"{output}: {config.name}, {chosen.kind}, {parse_model(chosen.data).sha256}")
    return 0
