"""`msinn compress` and `msinn plan`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.arguments import add_device, add_executor, add_source_storage, add_storage, minutes, placement_of, size
from msinn_core.config import DEFAULT_MAX_PIXELS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from msinn_core.model_file import LoadedModel
    from pipeline.execute.connection import Resources
    from pipeline.execute.placement import Placement
    from pipeline.plan.config import Budget
    from pipeline.run.changes import Grown
    from pipeline.run.compress import Outcome
    from pipeline.run.report import Reporter
    from pipeline.sources import SourceRecord


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verbs."""
    p = verbs.add_parser("compress", help="archive images under a budget; run it again to resume")
    p.add_argument("--dry-run", action="store_true", help="analyse and show the plan; encode nothing (the same as `msinn plan`)")
    _add_arguments(p)
    p = verbs.add_parser("plan", help="analyse and show what `compress` would do and cost; encode nothing")
    p.set_defaults(dry_run=True)
    _add_arguments(p)


def _add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("source", metavar="SRC", help="folder, glob, .tar shards or .parquet; local or any fsspec URL (s3://...)")
    p.add_argument("destination", metavar="DST", help="root of the archive: folder or URL")
    add_storage(p, "destination")
    add_source_storage(p)
    budget = p.add_mutually_exclusive_group()
    budget.add_argument("--bpp", type=float, metavar="X", help="bits per pixel of the whole dataset, as stored")
    budget.add_argument("--bytes", type=size, metavar="N", help="bytes of the whole dataset, as stored; takes k, M, G, T and Ki, Mi, Gi, Ti")
    budget.add_argument("--ratio", type=float, metavar="R", help="source bytes over stored bytes")
    budget.add_argument("--psnr", type=float, metavar="P", help="every image just above P dB")
    budget.add_argument(
        "--lossless", action="store_const", const=0.0, help="everything exactly: JPEG files to the byte, of others every sample (see --exact)"
    )
    budget.add_argument(
        "--max-error", type=float, metavar="N", help="no sample of any image further off than N (1 to 8 of 255); what is no picture of 8 bits exactly"
    )
    budget.add_argument("--q", type=float, metavar="Q", help="one rate index for all (0 smallest, 11 best)")
    p.add_argument(
        "--grow", action="store_true",
        help="add what has changed in SRC to a sealed archive, as another generation: new images at the price of the others, or, with a budget, with "
        "what is left of it for the whole archive",
    )  # fmt: skip
    p.add_argument("--moved", action="store_true", help="with --grow: SRC is the archive's source, at another address")
    p.add_argument("--lossless-jpeg", action="store_true", help="JPEG files are made smaller only to the byte; the rest pays the budget")
    p.add_argument(
        "--exact", choices=("pixels", "bytes"), default="pixels", help="with --lossless: what of files that are no JPEG comes back (default: pixels)"
    )
    p.add_argument(
        "--forms", choices=("msinn", "all"), default="msinn",
        help="all: an image is stored exactly, too, where that is the better use of the budget, and what was drawn in AVIF where that is smaller: "
        "small images, screenshots, charts, JPEG files (default: msinn)",
    )  # fmt: skip
    p.add_argument(
        "--min-psnr", type=float, metavar="P", help="no image below P dB; inf: every image exactly, and an error if that takes more than the budget"
    )
    p.add_argument("--max-psnr", type=float, metavar="P", help="spend nothing on going beyond P dB")
    p.add_argument("--min-bpp", type=float, metavar="X", help="at least X bits per pixel for every image, as predicted")
    p.add_argument("--max-bpp", type=float, metavar="X", help="at most X bits per pixel for any image, as predicted")
    p.add_argument("--min-q", type=float, metavar="Q", help="no image below rate index Q")
    p.add_argument("--max-q", type=float, metavar="Q", help="no image above rate index Q")
    p.add_argument(
        "--per-image", metavar="FILE",
        help="Parquet or CSV with `name` and any of weight, min_psnr_db (inf: exactly), max_psnr_db, min_bpp, ... max_q",
    )  # fmt: skip
    p.add_argument(
        "--objective", choices=("mse", "psnr", "minimum"), default="mse", help="pooled error, mean PSNR, or the worst image (default: mse)"
    )
    p.add_argument("--price-per-hour", type=float, metavar="X", help="of a plan: cost of one worker's hour, for the estimate")
    p.add_argument("--curve", metavar="FILE.png", help="of a plan: plot what other budgets would buy")
    p.add_argument("--model", default="msinn-lite", help="name, SHA-256 or path (see msinn models)")
    p.add_argument(
        "--tune", type=minutes, metavar="30m", help="first learn the images for so long: a model of their own, used if the archive gets smaller"
    )
    p.add_argument("--models", type=int, choices=range(1, 5), metavar="N", help="with --tune: up to N models (1 to 4) for images of several kinds")
    p.add_argument(
        "--max-pixels", type=int, default=DEFAULT_MAX_PIXELS, metavar="N", help="larger images are kept as they are (default: %(default)s)"
    )
    p.add_argument("--count-sidecars", action="store_true", help="sidecars count towards the budget")
    p.add_argument("--ms-ssim", action="store_true", help="measure MS-SSIM too (slower)")
    p.add_argument(
        "--verify",
        choices=("sample", "full"),
        default="sample",
        help="decode a sample of the images from their bytes, or all, by another instruction set (default: sample)",
    )
    p.add_argument("--verify-sample", type=float, metavar="SHARE", help="share of the images in the sample, at least one a shard (default: 0.03125)")
    p.add_argument("--include", action="append", default=[], metavar="GLOB", help="only files whose relative name (or its last part) fits; repeat")
    p.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="not these; repeat")
    p.add_argument("--all-files", action="store_true", help="also .git, .DS_Store, __MACOSX, Thumbs.db and the like")
    p.add_argument("--follow-links", action="store_true", help="also links that lead out of SRC")
    p.add_argument("--image-column", metavar="NAME", help="Parquet column that holds the images")
    add_device(p)
    p.add_argument(
        "--workers", type=int, metavar="N", help="parallel workers (default: all that fit; on a cluster N are asked for, and wait for room)"
    )
    p.add_argument("--gpus-per-worker", type=float, metavar="X", help="GPUs of a worker, or a part of one, with --device cuda or auto (default: 1)")
    p.add_argument("--memory-per-worker", type=size, metavar="N", help="memory that Ray reserves for each worker, e.g. 3G")
    p.add_argument(
        "--label", action="append", default=[], metavar="KEY=VALUE", help="run on nodes with this Ray label, e.g. ray.io/accelerator-type=L4"
    )
    add_executor(p)
    p.add_argument("--json", action="store_true", help="print the summary as JSON")
    p.set_defaults(command=_compress)


def _compress(arguments: argparse.Namespace) -> int:
    from jobs.exits import EXIT_SOME_FAILED
    from jobs.plan_view import print_plan
    from pipeline.archive.layout import sha256
    from pipeline.errors import UsageError
    from pipeline.plan.config import BUDGET_KINDS, Budget, CompressConfig
    from pipeline.run.compress import Run
    from pipeline.run.report import reporter_for

    if (arguments.price_per_hour is not None or arguments.curve) and not arguments.dry_run:
        raise UsageError("--price-per-hour and --curve belong to a plan: msinn plan, or --dry-run")
    if arguments.price_per_hour is not None and not 0 <= arguments.price_per_hour < 1e9:
        raise UsageError(f"--price-per-hour is {arguments.price_per_hour:g}; it takes a price, 0 or more")
    if arguments.workers is not None and arguments.workers < 1:
        raise UsageError(f"--workers is {arguments.workers}; it takes 1 or more")
    if arguments.models is not None and arguments.tune is None:
        raise UsageError("--models belongs to --tune")
    if arguments.tune is not None and arguments.lossless is not None:
        raise UsageError("--tune contradicts --lossless, which codes nothing with a model")
    if arguments.tune is not None and arguments.max_error is not None:
        raise UsageError("--tune learns for a budget, and --max-error is none: say one of them")
    if arguments.tune is not None and arguments.min_psnr == math.inf:
        raise UsageError("--tune contradicts --min-psnr inf, with which nothing is coded with a model")
    if arguments.grow and arguments.tune is not None:
        raise UsageError("--grow goes on with the archive's own model: without --tune")
    if arguments.moved and not arguments.grow:
        raise UsageError("--moved belongs to --grow; without it a source may have moved as long as its names and sizes are the same")
    resources = _resources(arguments)
    kind = next((kind for kind in BUDGET_KINDS if getattr(arguments, kind) is not None), None)
    if kind is None and not arguments.grow:
        names = ", ".join("--" + name.replace("_", "-") for name in BUDGET_KINDS)
        raise UsageError(f"say a budget: one of {names} (an archive that grows, by --grow, needs none)")
    budget = Budget(kind=kind, value=getattr(arguments, kind)) if kind is not None else None
    preferences = _read_table(arguments.per_image) if arguments.per_image else None
    config = CompressConfig(
        # Of a growth without a budget it says nothing: that goes on as before.
        budget=budget or Budget(kind="bpp", value=1.0),
        objective=arguments.objective,
        min_psnr_db=arguments.min_psnr,
        max_psnr_db=arguments.max_psnr,
        min_bpp=arguments.min_bpp,
        max_bpp=arguments.max_bpp,
        min_q=arguments.min_q,
        max_q=arguments.max_q,
        preferences_sha256=sha256(preferences) if preferences is not None else None,
        model=arguments.model,
        max_pixels=arguments.max_pixels,
        count_sidecars=arguments.count_sidecars,
        ms_ssim=arguments.ms_ssim,
        image_column=arguments.image_column,
        device=arguments.device,
        verify_sample=_verify_sample(arguments),
        include=tuple(arguments.include),
        exclude=tuple(arguments.exclude),
        all_files=arguments.all_files,
        follow_links=arguments.follow_links,
        lossless_jpeg=arguments.lossless_jpeg,
        exact=arguments.exact,
        forms=arguments.forms,
        avif=arguments.forms == "all",
    )
    placement = placement_of(arguments, resources)
    reporter = reporter_for(sys.stderr, quiet=arguments.quiet, verbose=arguments.verbose)
    try:
        run = Run(
            arguments.source,
            arguments.destination,
            config,
            reporter,
            placement=placement,
            preferences=preferences,
            own_models=_learner(arguments, config.budget, placement, reporter) if arguments.tune is not None else None,
            grow=arguments.grow,
            budget=budget,
            moved=arguments.moved,
        )
        with contextlib.redirect_stdout(sys.stderr):  # Ray speaks of lost nodes and workers there
            outcome = run.execute(dry_run=arguments.dry_run)
    finally:
        reporter.close()
    if not arguments.dry_run:
        from pipeline.archive.learned import tidy
        from pipeline.store.base import open_store

        tidy(open_store(arguments.destination))
    if outcome.grown is not None and not arguments.json:
        _say_growth(outcome.grown)
        if outcome.grown.nothing:
            return EXIT_SOME_FAILED if outcome.grown.unread or outcome.warnings else 0
    if arguments.dry_run:
        if outcome.plan is None:
            return 0  # nothing to encode
        print_plan(outcome.plan, price_per_hour=arguments.price_per_hour, curve=arguments.curve, as_json=arguments.json)
        return 0
    return _summarise(arguments.destination, outcome, arguments.json, say_device=arguments.device == "auto")


def _say_growth(grown: Grown) -> None:
    read = f" ({grown.compared:,} files read to be sure, {grown.compared_bytes:,} bytes)" if grown.compared else ""
    if grown.nothing:
        stay = f"; {grown.unread:,} of them could not be read now" if grown.unread else ""
        print(f"nothing has changed since generation {grown.generation}: {grown.unchanged:,} images are as they were{read}{stay}")
        return
    stay = f"; {grown.unread:,} could not be read and stay" if grown.unread else ""
    print(
        f"generation  {grown.generation}: {grown.added:,} images added, {grown.changed:,} changed, {grown.vanished:,} vanished, "
        f"{grown.unchanged:,} as they were{read}{stay}"
    )


def _verify_sample(arguments: argparse.Namespace) -> float:
    from pipeline.errors import UsageError
    from pipeline.plan.config import VERIFY_SAMPLE

    share: float | None = arguments.verify_sample
    if arguments.verify == "full":
        if share is not None and share != 1:
            raise UsageError(f"--verify-sample {share:g} contradicts --verify full, which is a share of 1")
        return 1.0
    return VERIFY_SAMPLE if share is None else share


def _learner(
    arguments: argparse.Namespace, budget: Budget, placement: Placement, reporter: Reporter
) -> Callable[[Sequence[SourceRecord]], Sequence[LoadedModel]]:
    """What gives a run models of its images' own."""
    import torch

    from msinn_core.model_file import load_model
    from pipeline.archive.layout import RUN
    from pipeline.lab.learning import learned
    from pipeline.lab.sample import candidates
    from pipeline.lab.tuned_run import Learning
    from pipeline.lab.tuning import TuneConfig, start_of
    from pipeline.store.base import open_store

    store = open_store(arguments.destination)
    if store.exists(RUN):
        return lambda records: ()  # it keeps its models, whatever --model names
    general = load_model(arguments.model)
    start_of(general)  # it says what is missing before anything is read
    threads = torch.get_num_threads()
    config = TuneConfig(name=f"{general.name}-tuned", minutes=arguments.tune, device=arguments.device, threads=threads)

    def learn(records: Sequence[SourceRecord]) -> Sequence[LoadedModel]:
        learning = Learning(
            candidates=candidates(records, config.seed),
            images=len(records),
            source_bytes=sum(max(0, record.part.length) for record in records),
            destination=None if arguments.dry_run else store.url,
            general=general.data,
            budget=budget,
            config=config,
            num_models=arguments.models or 1,
        )
        return learned(learning, placement, reporter)

    return learn


def _resources(arguments: argparse.Namespace) -> Resources:
    from pipeline.errors import UsageError
    from pipeline.execute.connection import Resources

    gpus = arguments.gpus_per_worker
    if gpus is not None and arguments.device == "cpu":
        raise UsageError("--gpus-per-worker belongs to --device cuda or auto")
    if gpus is not None and not (0 < gpus <= 1 or (gpus > 1 and gpus == int(gpus))):
        raise UsageError(f"--gpus-per-worker is {gpus:g}; it takes a part of one GPU or a whole number")
    labels = dict(pair.partition("=")[::2] for pair in arguments.label)
    if any("=" not in pair for pair in arguments.label):
        raise UsageError("--label takes KEY=VALUE")
    if arguments.memory_per_worker is not None and arguments.memory_per_worker < 2**20:
        raise UsageError("--memory-per-worker takes a size of 1Mi or more")
    return Resources(gpus=gpus or 0.0, memory_bytes=int(arguments.memory_per_worker or 0), labels=labels)


def _read_table(path: str) -> bytes:
    from pipeline.errors import UsageError

    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def _summarise(destination: str, outcome: Outcome, as_json: bool, *, say_device: bool) -> int:
    from jobs.audit import print_summary
    from jobs.exits import EXIT_BUDGET, EXIT_SOME_FAILED
    from jobs.output import print_devices
    from pipeline.archive.archive import Archive
    from pipeline.archive.row import Row
    from pipeline.formats.records import rows_of
    from pipeline.read.audit import summary

    assert outcome.sealed is not None
    facts = summary(Archive(destination))
    sealed = {key: value for key, value in outcome.sealed.items() if key not in ("commits", "run")}
    if as_json:
        counts: dict[str, Any] = {"sealed": sealed, "shards_encoded": outcome.redone, "shards_resumed": outcome.resumed}
        if outcome.grown is not None:
            counts["grown"] = dataclasses.asdict(outcome.grown)
        print(json.dumps(counts | dataclasses.asdict(facts), default=str))
    else:
        if outcome.resumed:
            print(f"{outcome.resumed} shards were there already, {outcome.redone} were encoded now")
        print_summary(facts, sealed)
        if say_device:
            print_devices("encoded on", {row.encoder for row in rows_of(Row, Archive(destination).manifest(["encoder"])) if row.encoder})
    if outcome.over_budget:
        over = sealed["counted_bytes"] - (outcome.budget_bytes or 0)
        print(f"msinn: the archive is complete but {over:,.0f} bytes over its budget of {outcome.budget_bytes:,.0f}", file=sys.stderr)
        return EXIT_BUDGET
    if sealed["failed"] or sealed.get("troubled") or sealed["scan_warnings"] or (outcome.grown is not None and outcome.grown.unread):
        return EXIT_SOME_FAILED
    return 0
