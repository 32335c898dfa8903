"""`msinn submit`."""

from __future__ import annotations

import argparse
import os
import sys


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    p = verbs.add_parser(
        "submit",
        help="run `compress` as a job of a Ray cluster, and follow it",
        description="Sends this installation's code and compiled kernels with the job, so that the cluster's image needs the dependencies alone. "
        "A cluster whose machines cannot use the kernels (another processor or system) is refused: see --installed and --slow. "
        "The same command again joins the running job; another one for the same archive is refused.",
    )
    p.add_argument("--address", metavar="URL", help="the cluster's job server (default: $RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265)")
    p.add_argument("--python", default="python", metavar="PATH", help="the interpreter on the cluster (default: python)")
    p.add_argument("--pip", action="append", default=[], metavar="PKG", help="a package that the cluster's image lacks; repeat")
    p.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable for the job; repeat; not for secrets, Ray shows them")
    p.add_argument("--installed", action="store_true", help="use the msinn of the cluster's image instead of sending this one's code")
    p.add_argument("--slow", action="store_true", help="go on where the cluster's machines lack the compiled kernels: a hundred times as long")
    p.add_argument("--no-wait", action="store_true", help="do not follow the log")
    p.add_argument("arguments", nargs=argparse.REMAINDER, metavar="-- compress ...")
    p.set_defaults(command=_submit)


def _submit(arguments: argparse.Namespace) -> int:
    from jobs import cli
    from jobs.exits import EXIT_INTERRUPTED
    from pipeline.errors import UsageError
    from pipeline.execute.connection import without_secrets
    from pipeline.execute.submission import Cluster, default_address
    from pipeline.text import redacted

    wanted = arguments.arguments[1:] if arguments.arguments[:1] == ["--"] else arguments.arguments
    if wanted[:1] != ["compress"]:
        raise UsageError("submit takes a compress command: msinn submit -- compress SRC DST --bpp 1")
    inner = cli.parser().parse_args(wanted)
    for place in filter(None, (inner.source, inner.destination, inner.per_image)):
        if "://" not in place and not place.startswith("/"):
            raise UsageError(f"{place} is a path of this machine: the cluster needs a URL, or an absolute path that all its machines share")
        if redacted(place) != place:
            raise UsageError(f"{place} holds a secret, which Ray would show with the job: let the cluster's machines read it by their roles")
    for pair in (*inner.storage_option, *inner.source_option):
        if without_secrets(dict([pair.partition("=")[::2]])) == {}:
            raise UsageError(
                f"{pair.partition('=')[0]} is a secret, which Ray would show with the job: let the cluster's machines have it by their roles"
            )
    if not inner.model.startswith("/") and (os.sep in inner.model or inner.model.endswith((".safetensors", ".compact"))):
        raise UsageError(
            f"--model {inner.model} is a path of this machine: the cluster needs a shipped model, or an absolute path that its machines share"
        )
    env = {}
    for pair in arguments.env:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--env {pair} is not NAME=VALUE")
        env[name] = value
    if inner.cluster is None:
        wanted = [*wanted, "--cluster", "auto"]
    cluster = Cluster(arguments.address or default_address())
    job = cluster.submit(
        wanted, inner.destination, python=arguments.python, pip=arguments.pip, env=env, installed=arguments.installed, slow=arguments.slow
    )
    print(f"{'joined the running job' if job.joined else 'submitted'} {job.id} on {cluster.address}", file=sys.stderr)
    if arguments.no_wait:
        print(job.id)
        return 0
    try:
        code = cluster.follow(job.id, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        print(f"left job {job.id} running; the same command joins it again, `ray job stop {job.id}` ends it", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(f"job {job.id} ended with exit code {code}", file=sys.stderr)
    return code
