"""The engine of a model: the float network, or the integer one on the CPU or on a GPU, once it has proved that it computes rightly."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable

from msinn_core.engine import Engine
from msinn_core.entropy.first_stream import StreamCoder
from msinn_core.errors import CheckpointError
from msinn_core.integer.backend import Backend
from msinn_core.integer.engine import IntegerEngine, golden_digest
from msinn_core.integer.network import IntegerNetwork
from msinn_core.integer.ops import Compiled, best_backend
from msinn_core.model_file import LoadedModel


def engine_for(model: LoadedModel, *, device: str = "cpu", threads: int = 1, backend: Backend | None = None) -> Engine:
    """The engine of a model.

    An integer backend must reproduce the model file's golden vector before it may decode anything. What fails gives way, with one warning, to the
    next that does not: a GPU to the compiled kernel, the compiled kernel to the portable form.

    Args:
        model: From `model_file.load_model`.
        device: `cpu`, a GPU, or `auto`: a GPU if there is one that passes the self-test.
        threads: CPU threads: of the compiled backend, or of the entropy coder beside a GPU.
        backend: A backend of the caller's choice instead, for tests and benchmarks.

    Raises:
        CheckpointError: No backend of this machine, or not the one that was asked for, gives the golden vector.
    """
    if device == "auto":
        # The float profile's pixels are those of like machines only: nobody gets a GPU's who did not ask for it.
        device = "cuda" if backend is None and model.network is None and _has_gpu() else "cpu"
    if model.network is not None:
        from msinn_core.float.engine import FloatEngine

        return FloatEngine(model.network, model.tables, device)
    if backend is None and device.split(":")[0] != "cpu":
        if (engine := _on_gpu(model, device, threads)) is not None:
            return engine
        return engine_for(model, threads=threads)
    chosen = backend or best_backend(threads)
    network = _checked(model, chosen)
    if network is not None:
        if network.backend.lead:
            from msinn_core.integer.gpu.engine import DeviceEngine

            return DeviceEngine(network, StreamCoder(model.tables, model.weights), threads)
        return IntegerEngine(network, StreamCoder(model.tables, model.weights))
    if backend is not None or not isinstance(chosen, Compiled):
        raise CheckpointError(
            f"model {model.name} does not give its golden vector here ({chosen.name}), so nothing can be decoded without risk: "
            "the model file was changed, or this machine computes wrongly"
        )
    warnings.warn("the compiled integer kernel fails its self-test on this machine: using the portable form, which is slower", stacklevel=2)
    from msinn_core.integer.portable import Portable

    return engine_for(model, backend=Portable())


def _checked(model: LoadedModel, backend: Backend) -> IntegerNetwork | None:
    """The network, or None where it does not give the golden vector."""
    try:
        network = IntegerNetwork(model.config, model.integer, backend)
        return network if golden_digest(network) == model.golden else None
    except (ValueError, IndexError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"the parts of integer model {model.name} contradict each other: {error}") from error


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _on_gpu(model: LoadedModel, device: str, threads: int) -> Engine | None:
    """The engine of a GPU, in Triton, in Triton for the layers and torch between them, or in float64; None, with a warning, where none of these can
    be trusted or run."""
    import torch

    from msinn_core.integer.gpu.backend import on_device
    from msinn_core.integer.gpu.engine import DeviceEngine
    from msinn_core.integer.gpu.layers import Convolution, TritonLayers, triton_layers
    from msinn_core.integer.portable import Float64Layers

    where = torch.device(device)
    reasons: list[str] = []
    attempts: deque[tuple[str, Callable[[], Convolution | None], bool]] = deque()
    attempts += ("Triton", lambda: triton_layers(where), True), ("float64", Float64Layers, False)
    while attempts:
        name, make, fused = attempts.popleft()
        layers = None
        try:
            layers = make()
            network = None if layers is None else _checked(model, on_device(where, layers, fused=fused))
            reason = "not installed" if layers is None else "its results differ from the model's golden vector"
        except Exception as error:  # a driver, a compiler, a lack of memory: all of them mean the next
            network, reason = None, " ".join(str(error).split())[:200]
        if network is not None:
            if any("not installed" not in reason for reason in reasons):
                warnings.warn(f"{device} computes in {name} ({'; '.join(reasons)})", stacklevel=3)
            return DeviceEngine(network, StreamCoder(model.tables, model.weights), threads)
        reasons.append(f"{name}: {reason}")
        if fused and isinstance(layers, TritonLayers):
            attempts.appendleft(("Triton for the layers alone", lambda layers=layers: layers, False))  # type: ignore[misc]
    warnings.warn(f"{device} is not used, the CPU is ({'; '.join(reasons)})", stacklevel=3)
    return None
