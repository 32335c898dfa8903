"""Asked by a submitted job before its run: do the cluster's machines have the compiled kernels, without which a run takes a hundred times as long?"""

from __future__ import annotations

import platform
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from msinn_core.entropy import rans
from msinn_core.integer import ops
from pipeline.execute.base import WorkersError
from pipeline.execute.connection import connect

_ANSWER_S = 300.0


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster, as a worker there sees it.

    Attributes:
        name: Of the host.
        platform: System, processor and Python, on which it depends whether compiled kernels load.
        missing: Modules of compiled kernels that did not.
    """

    name: str
    platform: str
    missing: tuple[str, ...]


def this_machine() -> Machine:
    """The machine, and the installation, that runs this."""
    kernels = {"msinn_core.integer._int16": ops.COMPILED, "msinn_core.entropy._rans": rans.COMPILED}
    kind = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return Machine(socket.gethostname(), kind, tuple(name for name, there in kernels.items() if not there))


def machines() -> list[Machine]:
    """The machines that do the work of the cluster that this job is part of; its head where there are none yet. Who does not answer is left out.

    Raises:
        WorkersError: There is no cluster, no machine answers, or one cannot run our code.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    connect("auto", 1)
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    working = [node for node in alive if node["Resources"].get("CPU") or node["Resources"].get("GPU")]
    ask = ray.remote(num_cpus=0, max_retries=0)(this_machine)
    answers = [ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote() for node in working or alive]
    found = []
    for answer in ray.wait(answers, num_returns=len(answers), timeout=_ANSWER_S)[0]:
        try:
            found.append(ray.get(answer))
        except ray.exceptions.RayTaskError as error:
            raise WorkersError(f"a machine of the cluster cannot run msinn: {error.cause}") from error
        except ray.exceptions.RayError:  # the machine went meanwhile
            continue
    if not found:
        raise WorkersError(f"none of {len(answers)} machines of the cluster answered within {_ANSWER_S:.0f} s")
    return found


def complaint(found: Sequence[Machine]) -> str | None:
    """What is wrong with these machines and what to do about it, in a sentence; None if nothing is."""
    slow = [machine for machine in found if machine.missing]
    if not slow:
        return None
    first = slow[0]
    return (
        f"{len(slow)} of {len(found)} machines of the cluster have no compiled kernels ({first.name}, {first.platform}, cannot load "
        f"{' and '.join(first.missing)}): the same bytes, in a hundred times the time. The kernels travel with the code of the machine that submits, "
        "if it has them and is of the same system and processor; or install msinn in the cluster's image, with a C compiler, and submit with "
        "--installed; --slow goes on as it is"
    )


def main() -> int:
    """Exit code 0 if all machines have the kernels; else that of `WorkersError`, and the complaint on stderr."""
    try:
        said = complaint(machines())
    except WorkersError as error:
        said = str(error)
    if said is None:
        return 0
    print(f"msinn: {said}", file=sys.stderr)
    return WorkersError.exit_code
