"""How many launches a batch costs, counted without a device: every torch operation that computes or copies, and every kernel of ours.

Nothing of ours is computed: a kernel's output is what was in memory. So what is counted is the walk with symbols of 0, which has the same launches.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from msinn_core.entropy.first_stream import StreamCoder
from msinn_core.heads import Head
from msinn_core.integer.gpu import layers as gpu_layers
from msinn_core.integer.gpu.backend import on_device
from msinn_core.integer.gpu.engine import DeviceEngine
from msinn_core.integer.network import IntegerNetwork
from msinn_core.model_file import LoadedModel, heads_of, parse_model
from msinn_core.walk import begun, walk

_NO_LAUNCH = (
    "_pin_memory _reshape_alias _unsafe_view alias as_strided detach empty empty_like empty_strided expand is_pinned lift_fresh new_empty permute",
    "reshape resolve_conj resolve_neg scalar_tensor select slice split t transpose unbind unsqueeze view",
)
NO_LAUNCH = frozenset(name for line in _NO_LAUNCH for name in line.split())
"""Operations of torch that move nothing: they look at memory in another way, or ask for some."""


@dataclass(frozen=True)
class Launch:
    """Of a kernel of ours."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


@dataclass
class Launches:
    """How many there are of what, kernels of ours as `triton NAME`; and these one by one."""

    counts: Counter[str] = field(default_factory=Counter)
    launches: list[Launch] = field(default_factory=list)


class _Counting(TorchDispatchMode):
    """Counts by name."""

    def __init__(self, found: Launches) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # of what is made of other operations, those are counted
            made = func.decompose(*args, **(kwargs or {}))
        if made is not NotImplemented:
            return made
        name = func.overloadpacket.__name__
        if name not in NO_LAUNCH:
            self._found.counts[name] += 1
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def counted() -> Iterator[Launches]:
    """Launches within; of our kernels nothing is computed."""
    found, right = Launches(), gpu_layers.launch

    def launch(kernel: Any, grid: Any, /, *arguments: Any, **constants: Any) -> None:
        found.counts[f"triton {gpu_layers.name_of(kernel)}"] += 1
        found.launches.append(Launch(kernel, grid, arguments, constants))

    gpu_layers.launch = launch  # type: ignore[assignment]
    try:
        with torch.inference_mode(), _Counting(found):
            yield found
    finally:
        gpu_layers.launch = right


class _Zeros:
    """Symbols of a half, as if they came from the host."""

    def symbols(self, k: int, parity: int, parameters: Any, indexes: Any) -> Any:
        return torch.empty(indexes.shape, dtype=torch.int32)


def of_decode(engine: DeviceEngine, shape: tuple[int, int, int]) -> Launches:
    """Of a batch `(N, h, w)` of y5, without its copies from and to the host."""

    def run() -> None:
        walk(engine.network, _Zeros(), engine._gains([6.0] * shape[0]), shape).picture()

    return _of(run)


def of_encode(engine: DeviceEngine, shape: tuple[int, int, int]) -> Launches:
    """Of the transform and the symbols of such a batch."""
    pixels = np.zeros((shape[0], 16 * shape[1], 16 * shape[2], 3), np.uint8)
    return _of(lambda: engine.compress_many(engine.transform_many(pixels), [6.0] * shape[0], shape[1:]))


def of_reduced(engine: DeviceEngine, shape: tuple[int, int, int], head: Head) -> Launches:
    """Of the decoder of such a batch at a head's scale, without its copies."""

    def run() -> None:
        engine.network.reduced(begun(engine.network, _Zeros(), engine._gains([6.0] * shape[0]), shape, head.num_steps), head)

    return _of(run)


def of_all(model: LoadedModel, layers: Any, shape: tuple[int, int, int], heads: Mapping[int, Head]) -> list[Launch]:
    """All that a model's batches start: encoded, decoded, decoded at every scale."""
    network = IntegerNetwork(model.config, model.integer, on_device(torch.device("cpu"), layers))
    engine = DeviceEngine(network, StreamCoder(model.tables, model.weights), 1)
    found = of_decode(engine, shape).launches + of_encode(engine, shape).launches
    for head in heads.values():
        found += of_reduced(engine, shape, head).launches
    return found


def compile_share(data: bytes, share: int, shares: int) -> int:
    """Start, on this machine's GPU, every kernel that a model's batches start, so that Triton's cache on disk has it; one in `shares` of them.

    In a process of its own: compiling is what takes time, on one core. Of what lies in memory nothing is asked for: any table entry may be read.
    """
    model = parse_model(data)
    forms = {}
    for launch in of_all(model, gpu_layers.TritonLayers(), (2, 4, 6), heads_of(model)):
        params = [param for param in launch.kernel.params if param.name not in launch.constants]
        kinds = [_kind(*pair) for pair in zip(params, launch.arguments, strict=True)]
        forms[gpu_layers.name_of(launch.kernel), *kinds, *launch.constants.values()] = launch
    mine = list(forms.values())[share::shares]
    for launch in mine:
        gpu_layers.launch(launch.kernel, launch.grid, *(_placed(of) for of in launch.arguments), **launch.constants)
    torch.cuda.synchronize()
    return len(mine)


def _kind(param: Any, argument: Any) -> Any:
    """What Triton specialises by."""
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.storage_offset() * argument.element_size() % 16
    return None if param.do_not_specialize else argument % 16


def _placed(argument: Any) -> Any:
    """On the GPU, as far from the beginning of its memory as it is here: alignment is part of what is compiled."""
    if not isinstance(argument, torch.Tensor):
        return argument
    whole = torch.empty(argument.untyped_storage().nbytes() // argument.element_size(), dtype=argument.dtype, device="cuda")
    return whole.as_strided(argument.shape, argument.stride(), argument.storage_offset())


def _of(run: Callable[[], Any]) -> Launches:
    """What the second run costs: the first places the model."""
    for _ in range(2):
        with counted() as found:
            run()
    return found
