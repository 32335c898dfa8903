"""Compiles the kernels that a model uses for GPUs that are not here, by the compiler in Triton's wheel: registers, spills, instructions.

Forms are those of a batch's walk, encoded and decoded (`launches`). What is counted is read from the machine code; nothing is run, nothing measured.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from infra.gpu import launches
from msinn_core.integer.gpu.layers import TritonLayers, name_of
from msinn_core.model_file import heads_of, load_model

_TYPES = {torch.uint8: "u8", torch.int8: "i8", torch.int16: "i16", torch.int32: "i32", torch.float32: "fp32", torch.float64: "fp64"}
OPTIONS = ("num_warps", "enable_fp_fusion")
"""Constants of a launch that are the compiler's, not the kernel's."""

MULTIPLY = ("conv",)


@dataclass(frozen=True)
class Form:
    """What Triton compiles: a kernel by name, types of its arguments, those that are multiples of 16, and constants."""

    kernel: str
    types: tuple[tuple[str, str], ...]
    aligned: tuple[str, ...]
    constants: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        return f"{self.kernel} {' '.join(f'{name}={value}' for name, value in self.constants if not name.startswith('block'))}"


def form_of(launch: launches.Launch) -> Form:
    """Of a launch, as Triton specialises it."""
    params = [param for param in launch.kernel.params if param.name not in launch.constants]
    types, aligned = [], []
    for param, argument in zip(params, launch.arguments, strict=True):
        if isinstance(argument, torch.Tensor):
            types.append((param.name, f"*{_TYPES[argument.dtype]}"))
            # The allocator of a device aligns to 512 bytes, and views begin where the host's do.
            aligned += [param.name] if argument.storage_offset() * argument.element_size() % 16 == 0 else []
        else:
            types.append((param.name, "i32"))
            aligned += [param.name] if argument % 16 == 0 and not param.do_not_specialize else []
    return Form(name_of(launch.kernel), tuple(types), tuple(aligned), tuple(launch.constants.items()))


def forms_of(model: str) -> list[Form]:
    """All that a model uses, each once."""
    loaded = load_model(model)
    found = launches.of_all(loaded, TritonLayers(), (2, 4, 6), heads_of(loaded))
    return list(dict.fromkeys(form_of(launch) for launch in found))


@dataclass(frozen=True)
class Compiled:
    """Of a form: registers and bytes of stack a thread, instructions in all, and products of the tensor cores by name."""

    form: Form
    architecture: int
    registers: int
    stack_bytes: int
    instructions: int
    products: tuple[str, ...]
    fused: bool

    @property
    def problem(self) -> str | None:
        """What must not be."""
        if self.stack_bytes:
            return f"{self.form} spills {self.stack_bytes} bytes a thread on sm_{self.architecture}"
        if self.fused and ("enable_fp_fusion", False) in self.form.constants:
            return f"{self.form} rounds a product and a sum at once on sm_{self.architecture}"
        return None


def compiled(form: Form, architecture: int) -> Compiled:
    """For compute capability `architecture`, 90 for 9.0."""
    import triton  # type: ignore[import-untyped]
    from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
    from triton.compiler import ASTSource  # type: ignore[import-untyped]

    from msinn_core.integer.gpu import elementwise, kernels

    kernel = getattr(kernels, form.kernel, None) or getattr(elementwise, form.kernel)
    constants = {name: value for name, value in form.constants if name not in OPTIONS}
    options = {name: value for name, value in form.constants if name in OPTIONS}
    place = {param.name: number for number, param in enumerate(kernel.params)}
    source = ASTSource(
        kernel,
        signature={**dict(form.types), **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
        attrs={(place[name],): [["tt.divisibility", 16]] for name in form.aligned},
    )
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    tools = tools_of(triton)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        used = subprocess.run([tools / "cuobjdump", "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
        code = subprocess.run([tools / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True).stdout
    instructions = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([\w.]+)", code)
    registers, stack = (int(number) for number in re.findall(r"REG:(\d+) STACK:(\d+)", used)[0])
    products = tuple(name for name in instructions if "MMA." in name and not name.startswith("HFMA"))
    return Compiled(form, architecture, registers, stack, len(instructions), products, "fma." in made.asm["ptx"])


def tools_of(triton: Any) -> Path:
    """Where the wheel has NVIDIA's assembler and its companions."""
    return Path(triton.__path__[0]) / "backends" / "nvidia" / "bin"


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile, and fail where something spills."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", default="msinn-lite")
    p.add_argument("--architectures", type=int, nargs="+", default=[80, 90])
    p.add_argument("--few", action="store_true", help="one form of each kernel; but for the last architecture, of those that multiply alone")
    p.add_argument("--processes", type=int, default=1)
    chosen = p.parse_args(arguments)
    forms = forms_of(chosen.model)
    if chosen.few:
        forms = list({form.kernel: form for form in reversed(forms)}.values())
    last = chosen.architectures[-1]
    jobs = [(form, at) for at in chosen.architectures for form in forms if not chosen.few or at == last or form.kernel in MULTIPLY]
    if chosen.processes > 1:
        with ProcessPoolExecutor(chosen.processes, multiprocessing.get_context("spawn")) as processes:
            found = list(processes.map(compiled, *zip(*jobs, strict=True)))
    else:
        found = [compiled(*job) for job in jobs]
    for one in found:
        products = f"{len(one.products)} {one.products[0]}" if one.products else ""
        print(f"sm_{one.architecture}  {one.registers:>4} registers  {one.instructions:>6} instructions  {one.form}  {products}")
    problems = [one.problem for one in found if one.problem]
    print(f"{len(forms)} forms of {len({form.kernel for form in forms})} kernels, {len(problems)} with problems")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
