"""Console script `msinn`. Heavy imports happen inside the verbs, so that `--help` and usage errors are instant."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from types import FrameType

from jobs.arguments import use_storage
from jobs.exits import EXIT_INFRASTRUCTURE, EXIT_INTERRUPTED, EXIT_PIPE, EXIT_USAGE, EXIT_VERIFY
from msinn_core import VERSION

_PARTING_S = 20.0

_EPILOG = """exit codes: 0 done; 2 usage; 3 done, some images failed; 4 budget infeasible or missed; 5 verification failed;
6 infrastructure; 130 interrupted (run the same command again to resume)"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from jobs import audit, bench, compress, diff, eval, gc, get, inspect, ls, models, restore, status, submit, train, tune, verify

    top = argparse.ArgumentParser(prog="msinn", description="Archive an image dataset to a byte budget with a learned codec.", epilog=_EPILOG)
    top.add_argument("--debug", action="store_true", help="show tracebacks (exit codes stay the same)")
    top.add_argument("-q", "--quiet", action="store_true", help="no progress, warnings alone")
    top.add_argument("-v", "--verbose", action="store_true", help="on a terminal: a line for each shard")
    top.add_argument("--version", action="version", version=f"msinn {VERSION}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for module in (compress, submit, status, verify, audit, restore, get, ls, diff, gc, inspect, models, tune, train, eval, bench):
        module.add_verbs(verbs)
    p = verbs.add_parser("completion", help="print a completion script: msinn completion bash > ~/.local/share/bash-completion/completions/msinn")
    p.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    p.set_defaults(command=_completion)
    return top


def _completion(arguments: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(parser(), arguments.shell))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    # Our matrix products are small: a second thread of BLAS only spins beside the workers. Read when NumPy is imported, which is later.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from jobs.output import printable_streams

    _open_streams()
    with printable_streams():
        return _run(parser().parse_args(argv))


def _open_streams() -> None:
    """Standard streams that are closed lead nowhere: else a file of ours would have their number, and whatever a library prints would go into it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 for as long as the process runs
    # Names are of any script, and not every locale has it.
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if codecs.lookup(encoding).name != "utf-8" and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _run(arguments: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # which nohup would have ignored
        signal.signal(signal.SIGHUP, _interrupt)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        _check_folder()
        use_storage(arguments)
        code = command(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # of a terminal that was closed
            print("interrupted: what is committed stays; run the same command again to go on", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left: say so as every Unix tool does, and keep the interpreter from saying it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        return _explain(error)


def _check_folder() -> None:
    """Libraries of ours end the process where the folder in which it works was removed."""
    from pipeline.errors import UsageError

    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UsageError("the folder in which this was called is gone: call it from another") from error


def _interrupt(signum: int, frame: FrameType | None) -> None:
    if "ray" in sys.modules:
        # Ray's processes got the signal too, and saying goodbye to them can take for ever. What is committed is safe.
        watchdog = threading.Timer(_PARTING_S, os._exit, (EXIT_INTERRUPTED,))
        watchdog.daemon = True
        watchdog.start()
    raise KeyboardInterrupt


def _explain(error: Exception) -> int:
    """One sentence on stderr, and the exit code that fits."""
    from msinn_core.errors import BitstreamError, CodecError
    from pipeline.errors import PipelineError

    if isinstance(error, PipelineError):
        print(f"msinn: {_flat(error)}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, CodecError):
        print(f"msinn: {_flat(error)}", file=sys.stderr)
        return EXIT_VERIFY if isinstance(error, BitstreamError) else EXIT_USAGE
    if isinstance(error, MemoryError):
        print("msinn: memory does not suffice: fewer --workers need less", file=sys.stderr)
        return EXIT_INFRASTRUCTURE
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        print(f"msinn: cannot write {error.filename or 'its output'}: {error.strerror}", file=sys.stderr)
        return EXIT_INFRASTRUCTURE
    print(f"msinn: unexpected {type(error).__name__}: {_flat(error)} (run again with --debug before the verb, and report it)", file=sys.stderr)
    return EXIT_INFRASTRUCTURE


def _flat(error: Exception) -> str:
    from pipeline.text import redacted

    return redacted(" ".join(str(error).split()))


def entry() -> None:
    """Console script: run, end Ray, and leave without the interpreter's teardown, in which native threads of the libraries we load can abort."""
    code = main()
    if "ray" in sys.modules:
        from pipeline.execute.connection import disconnect

        disconnect()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # what could not be written was said, or nobody is there to be told
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    entry()
