"""Hostile inputs by the hundred thousand: `python -m tests.fuzz.campaign --minutes 60`, or `make fuzz MINUTES=60`.

Every surface runs in a process of its own under bounds on memory and on the time of one input. Each input follows from surface, seed and number, so
that a finding is repeated by `--surface S --seed N --first I --inputs 1`. With `--sanitize` both C extensions are built under gcc's address and
undefined-behaviour sanitizers first.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[2]
EXTENSIONS = {"msinn_core.entropy._rans": "entropy/_rans.c", "msinn_core.integer._int16": "integer/_int16.c"}
HANG_S = 20
MEMORY_BYTES = 2 << 30
_SAVE_EVERY = 64


@dataclass
class Tally:
    """What came of a surface's inputs.

    Attributes:
        refused: Inputs that ended in an exception which is meant for it; the others were read.
        wrong: Findings: number of the input, and what it raised.
        hangs: Inputs that took longer than `HANG_S` seconds.
        crashes: Inputs that ended the process, sanitizer reports among them.
        slowest_s: Of one input; peak_mib of the process, beyond what it began with.
    """

    surface: str
    inputs: int = 0
    refused: int = 0
    wrong: list[tuple[int, str]] = field(default_factory=list)
    hangs: list[int] = field(default_factory=list)
    crashes: list[tuple[int, str]] = field(default_factory=list)
    slowest_s: float = 0.0
    peak_mib: float = 0.0

    @property
    def findings(self) -> int:
        """Inputs that did what none may."""
        return len(self.wrong) + len(self.hangs) + len(self.crashes)


class _HangError(BaseException):
    pass


def work(surface_name: str, seed: int, first: int, last: int, until: float, state: Path, sanitized: str) -> None:
    """Read inputs first..last or until a time, and write what came of them to `state`: one process's part."""
    for name in EXTENSIONS if sanitized else ():
        spec = importlib.util.spec_from_file_location(name, Path(sanitized) / f"{name.rpartition('.')[2]}.abi3.so")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    import torch

    from tests.fuzz.surfaces import HIDDEN, SURFACES, quiet

    torch.set_num_threads(1)
    quiet()
    surface = {**SURFACES, **HIDDEN}[surface_name]()
    tally = Tally(surface_name)
    began = _resident()
    if not sanitized:
        # A sanitizer's shadow counts as memory.
        resource.setrlimit(resource.RLIMIT_AS, (_virtual() + MEMORY_BYTES, resource.RLIM_INFINITY))

    def hang(number: int, frame: FrameType | None) -> None:
        raise _HangError

    signal.signal(signal.SIGALRM, hang)
    try:
        for number in range(first, last):
            if time.time() > until:
                break
            data = surface.make(Random(f"{surface_name} {seed} {number}"))
            exact = bool(sanitized) or surface.dear
            if exact or number % _SAVE_EVERY == 0:
                _save(state, tally, number, exact=exact)
            started = time.perf_counter()
            signal.alarm(HANG_S * (10 if sanitized else 1))
            try:
                surface.read(data)
            except surface.refusals:
                tally.refused += 1
            except _HangError:
                tally.hangs.append(number)
            except Exception as error:
                tally.wrong.append((number, f"{type(error).__name__}: {error}"[:200]))
            finally:
                signal.alarm(0)
            tally.inputs += 1
            tally.slowest_s = max(tally.slowest_s, time.perf_counter() - started)
        tally.peak_mib = max(0.0, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - began) / 2**20)
    finally:
        if hasattr(surface, "close"):
            surface.close()
    _save(state, tally, -1)


def _save(state: Path, tally: Tally, number: int, *, exact: bool = True) -> None:
    """Note what came of the inputs so far, and which comes next; `exact` if every input is noted."""
    state.write_text(json.dumps({"tally": asdict(tally), "number": number, "exact": exact}))


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _virtual() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def run(surface: str, *, seed: int, first: int, inputs: int, seconds: float, sanitized: str = "") -> Tally:
    """One surface, in processes that are started again after each crash."""
    total = Tally(surface)
    until = time.time() + seconds
    end = first + inputs
    while first < end and time.time() < until:
        with tempfile.TemporaryDirectory(prefix="msinn-campaign-") as folder:
            state = Path(folder) / "state.json"
            command = [
                sys.executable,
                "-m",
                "tests.fuzz.campaign",
                "--work",
                surface,
                str(seed),
                str(first),
                str(end),
                str(until),
                str(state),
                sanitized,
            ]
            ran = subprocess.run(command, cwd=ROOT, env=_environment(sanitized), capture_output=True, text=True, errors="replace")
            found: dict[str, Any] = (
                json.loads(state.read_text()) if state.exists() else {"tally": asdict(Tally(surface)), "number": first, "exact": True}
            )
        part = Tally(**found["tally"])
        total.inputs += part.inputs
        total.refused += part.refused
        total.wrong += [(number, what) for number, what in part.wrong]
        total.hangs += part.hangs
        total.slowest_s, total.peak_mib = max(total.slowest_s, part.slowest_s), max(total.peak_mib, part.peak_mib)
        if found["number"] == -1:
            break
        # The process died at this input, or within the next few where not each was noted.
        report = next((line for line in ran.stderr.splitlines() if "ERROR: AddressSanitizer" in line or "runtime error:" in line), "")
        total.crashes.append((found["number"], report[:300] or f"exit code {ran.returncode}: {ran.stderr[-300:]}"))
        total.inputs += 1
        first = found["number"] + (1 if found["exact"] else _SAVE_EVERY)
    return total


def _environment(sanitized: str) -> dict[str, str]:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    if sanitized:
        libraries = [
            subprocess.run(["gcc", f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True).stdout.strip()
            for name in ("asan", "ubsan")
        ]
        environment |= {
            "LD_PRELOAD": " ".join(libraries),
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=0",
        }
    return environment


@contextlib.contextmanager
def sanitizer_builds() -> Iterator[str]:
    """A folder with both extensions, built under the sanitizers by gcc."""
    with tempfile.TemporaryDirectory(prefix="msinn-sanitized-") as folder:
        for name, source in EXTENSIONS.items():
            subprocess.run(
                [
                    *("gcc", "-shared", "-fPIC", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
                    *(f"-I{sysconfig.get_paths()['include']}", str(ROOT / "msinn_core" / source)),
                    *("-o", f"{folder}/{name.rpartition('.')[2]}.abi3.so", "-lm"),
                ],
                check=True,
            )
        yield folder


def table(tallies: list[Tally]) -> str:
    """What came of a campaign, for people."""
    lines = [f"{'surface':<12}{'inputs':>10}{'refused':>10}{'wrong':>7}{'hangs':>7}{'crashes':>9}{'slowest s':>11}{'peak MiB':>10}"]
    for tally in tallies:
        counts = f"{tally.inputs:>10,}{tally.refused:>10,}{len(tally.wrong):>7}{len(tally.hangs):>7}{len(tally.crashes):>9}"
        lines.append(f"{tally.surface:<12}{counts}{tally.slowest_s:>11.3f}{tally.peak_mib:>10.0f}")
    lines.append(f"{'together':<12}{sum(tally.inputs for tally in tallies):>10,}")
    return "\n".join(lines)


def main() -> int:
    """Run a campaign; exit code 1 if anything was found."""
    if sys.argv[1:2] == ["--work"]:
        surface, seed, first, last, until, state, sanitized = sys.argv[2:]
        work(surface, int(seed), int(first), int(last), float(until), Path(state), sanitized)
        return 0
    from tests.fuzz.surfaces import SURFACES

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=1.0, help="for all surfaces together (1)")
    p.add_argument("--surface", action="append", choices=sorted(SURFACES), help="only these; repeat")
    p.add_argument("--seed", type=int, default=0, help="of all inputs (0)")
    p.add_argument("--first", type=int, default=0, help="number of the first input (0)")
    p.add_argument("--inputs", type=int, default=1 << 40, help="of each surface, at most")
    p.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="surfaces at a time (all processors)")
    p.add_argument("--sanitize", action="store_true", help="with both C extensions under gcc's sanitizers")
    p.add_argument("--json", metavar="FILE", help="write the tallies there too")
    arguments = p.parse_args()
    chosen = arguments.surface or list(SURFACES)
    seconds = 60 * arguments.minutes * min(arguments.jobs, len(chosen)) / len(chosen)
    with sanitizer_builds() if arguments.sanitize else contextlib.nullcontext("") as sanitized, ThreadPoolExecutor(arguments.jobs) as pool:
        parts = [
            pool.submit(run, surface, seed=arguments.seed, first=arguments.first, inputs=arguments.inputs, seconds=seconds, sanitized=sanitized)
            for surface in chosen
        ]
        tallies = [part.result() for part in parts]
    print(table(tallies))
    for tally in tallies:
        for number, what in [*tally.wrong[:10], *tally.crashes[:10], *((number, "hang") for number in tally.hangs[:10])]:
            print(f"{tally.surface} --seed {arguments.seed} --first {number} --inputs 1: {what}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps([asdict(tally) for tally in tallies], indent=1))
    return 1 if any(tally.findings for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
