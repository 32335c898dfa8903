"""`msinn bench`: speed as ratios within one run, on real symbols and images; errors of predictions; the plan of very many images."""

from __future__ import annotations

import argparse

from jobs.arguments import add_scale, add_storage
from jobs.exits import EXIT_VERIFY


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    p = verbs.add_parser("bench", help="measure the entropy coder, the codec or the pipeline, or prove that decoding is exact here")
    actions = p.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, text, run in (
        ("coder", "our rANS, constriction and compressai on the symbols of an image", _coder),
        ("codec", "encode, decode, verify and analyse an image with each model", _codec),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("image", metavar="IMAGE")
        action.add_argument("--q", type=float, default=5.0)
        action.add_argument("--repeat", type=int, default=5, metavar="N", help="best of N")
        action.add_argument("--model", nargs="+", default=["msinn-lite"] if name == "coder" else ["msinn-lite-float", "msinn-lite"], metavar="M")
        action.add_argument("--threads", type=int, default=1, metavar="N")
        action.set_defaults(command=run)
    action = actions.add_parser("exact", help="decode images with every backend, instruction set and thread count, and compare SHA-256")
    action.add_argument("images", metavar="IMAGES")
    action.add_argument("--q", type=float, default=5.0)
    action.add_argument("--model", nargs="+", default=["msinn-lite"], metavar="M", help="of either profile")
    action.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    action.set_defaults(command=_exact)
    action = actions.add_parser("predict", help="predicted bytes and PSNR against real encodes at nine rates, and what the analysis costs")
    action.add_argument("images", metavar="IMAGES")
    action.add_argument("--model", default="msinn-lite", metavar="M")
    action.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    action.set_defaults(command=_predict)
    action = actions.add_parser("peers", help="bytes, PSNR and speed beside JPEG, WebP, AVIF and JPEG XL at one quality, on one thread, in turns")
    action.add_argument("images", nargs="+", metavar="IMAGE")
    action.add_argument("--model", default="msinn-lite", metavar="M")
    action.add_argument("--q", type=float, default=5.0)
    action.add_argument("--peers", nargs="+", default=["jpeg", "webp", "avif-6", "jxl"], metavar="P", help="also avif, at speed 4")
    action.add_argument("--rounds", type=int, default=3, metavar="N", help="turns of each; the best counts")
    action.set_defaults(command=_peers)
    action = actions.add_parser("plan", help="plan simulated images by histograms, and compare with the exact solver on the first 100000")
    action.add_argument("--images", type=int, default=10_000_000, metavar="N")
    action.add_argument("--objective", choices=("mse", "psnr", "minimum"), default="mse")
    action.set_defaults(command=_plan)
    action = actions.add_parser("run", help="whole runs with 1, 2, ... workers against as many bare loops of the codec on the same images")
    action.add_argument("images", metavar="IMAGES")
    action.add_argument("--workers", type=int, nargs="+", default=[1, 2], metavar="N")
    action.add_argument("--destination", metavar="URL", help="where archives go (default: a temporary folder)")
    action.add_argument("--q", type=float, default=5.0)
    action.set_defaults(command=_run)
    action = actions.add_parser(
        "read", help="images a second for training: an archive read in every way, beside JPEG files and restored ones, in turns"
    )
    action.add_argument("archive", metavar="DST")
    add_storage(action)
    action.add_argument("--jpeg", metavar="FOLDER", help="JPEG files to compare with (default: the archive's images at quality 90)")
    action.add_argument("--images", type=int, default=200, metavar="N", help="at most so many, from the archive's beginning (default: %(default)s)")
    action.add_argument("--workers", type=int, nargs="+", default=[0, 2], metavar="N", help="of a DataLoader; 0: one process (default: 0 2)")
    action.add_argument("--batch", type=int, default=16, metavar="N", help="images in a batch (default: %(default)s)")
    action.add_argument("--rounds", type=int, default=3, metavar="N", help="turns of each; the best counts")
    add_scale(action)
    action.set_defaults(command=_read)
    action = actions.add_parser("driver", help="a run of very many tiny images with a codec that does nothing: time and memory of the driver")
    action.add_argument("--images", type=int, default=100_000, metavar="N")
    action.add_argument("--workers", type=int, default=1, metavar="N")
    action.add_argument("--plot", metavar="FILE.png", help="memory over time")
    action.set_defaults(command=_driver)


def _coder(arguments: argparse.Namespace) -> int:
    from pipeline.lab.bench_coder import bench_coder

    bench_coder(arguments.image, model=arguments.model[0], q=arguments.q, repeat=arguments.repeat, threads=arguments.threads)
    return 0


def _codec(arguments: argparse.Namespace) -> int:
    from pipeline.lab.bench_codec import bench_codec

    bench_codec(arguments.image, models=arguments.model, q=arguments.q, repeat=arguments.repeat, threads=arguments.threads)
    return 0


def _exact(arguments: argparse.Namespace) -> int:
    from pipeline.lab.bench_exact import bench_exact

    same = bench_exact(arguments.images, models=arguments.model, q=arguments.q, limit=arguments.limit)
    return 0 if same else EXIT_VERIFY


def _predict(arguments: argparse.Namespace) -> int:
    from pipeline.lab.bench_predict import bench_predict

    bench_predict(arguments.images, model=arguments.model, limit=arguments.limit)
    return 0


def _peers(arguments: argparse.Namespace) -> int:
    from pipeline.lab.bench_peers import bench_peers

    bench_peers(arguments.images, model=arguments.model, q=arguments.q, peers=arguments.peers, rounds=arguments.rounds)
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from pipeline.lab.bench_plan import bench_plan

    bench_plan(arguments.images, objective=arguments.objective)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from pipeline.lab.bench_run import bench_run

    bench_run(arguments.images, workers=arguments.workers, destination=arguments.destination, q=arguments.q)
    return 0


def _read(arguments: argparse.Namespace) -> int:
    from pipeline.lab.bench_read import bench_read

    bench_read(
        arguments.archive,
        jpeg=arguments.jpeg,
        images=arguments.images,
        workers=arguments.workers,
        batch=arguments.batch,
        rounds=arguments.rounds,
        scale=arguments.scale,
    )
    return 0


def _driver(arguments: argparse.Namespace) -> int:
    from pipeline.lab.bench_driver import bench_driver

    bench_driver(arguments.images, workers=arguments.workers, plot=arguments.plot)
    return 0
