"""Imports obey the arrows of the design: jobs -> pipeline -> msinn_core, and inside `pipeline` a wing uses the wings below it.

Only named modules touch Ray, fsspec or compressai. An import counts wherever it stands: in a function, or for types only.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the top down: each uses what stands after it. Modules that lie in `pipeline` itself are the ground.
WINGS = ["lab", "read", "run", "execute", "encode", "plan", "archive", "sources", "forms", "formats", "store"]
GROUND = {"errors", "limits", "text"}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def touches(path: Path, package: str) -> bool:
    return any(name == package or name.startswith(package + ".") for name in imported(path))


@pytest.mark.parametrize("forbidden", ["pipeline", "jobs", "ray", "fsspec", "s3fs", "pyarrow", "argparse", "os", "time", "datetime"])
def test_the_codec_knows_no_outside_world(forbidden: str) -> None:
    assert [str(path) for path in sources("msinn_core") if touches(path, forbidden)] == []


@pytest.mark.parametrize("forbidden", ["jobs", "argparse"])
def test_the_pipeline_knows_no_command_line(forbidden: str) -> None:
    assert [str(path) for path in sources("pipeline") if touches(path, forbidden)] == []


def of_pipeline(tree: ast.AST) -> set[str]:
    """Which wings and modules of the ground a module imports; "" stands for an import whose target cannot be told."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            names.add("pipeline")
        elif isinstance(node, ast.ImportFrom) and node.module == "pipeline":
            names |= {f"pipeline.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {f"{name}.".split(".")[1] for name in names if name.split(".")[0] == "pipeline"}


def back_arrows(wing: str, source: str) -> set[str]:
    """What a module of `wing` imports of `pipeline` although it does not stand below it."""
    below = WINGS[WINGS.index(wing) :] if wing in WINGS else []
    return of_pipeline(ast.parse(source)) - GROUND - set(below)


def test_every_module_of_the_pipeline_has_a_wing() -> None:
    assert {path.parent.name for path in sources("pipeline")} == {"pipeline", *WINGS}
    assert {path.stem for path in (ROOT / "pipeline").glob("*.py")} == {"__init__", *GROUND}


def test_a_wing_imports_only_wings_below_it() -> None:
    found = {str(path.relative_to(ROOT)): back_arrows(path.parent.name, path.read_text()) for path in sources("pipeline")}
    assert {name: arrows for name, arrows in found.items() if arrows} == {}


@pytest.mark.parametrize(
    ("wing", "source", "arrows"),
    [
        ("store", "from pipeline.run.report import Reporter", {"run"}),
        ("plan", "from pipeline import errors, encode", {"encode"}),
        ("archive", "import pipeline.read.verify as verify", {"read"}),
        ("sources", "def late():\n    from pipeline.archive import shard", {"archive"}),
        ("run", "if TYPE_CHECKING:\n    from pipeline.lab.peers import Peer", {"lab"}),
        ("store", "from ..text import shown", {""}),
        ("pipeline", "from pipeline.store.base import Store", {"store"}),
        ("run", "from pipeline.run import report\nfrom pipeline.encode import worker\nfrom pipeline.text import shown", set()),
    ],
)
def test_a_planted_back_arrow_is_found(wing: str, source: str, arrows: set[str]) -> None:
    assert back_arrows(wing, source) == arrows


def test_only_the_executors_use_ray() -> None:
    users = {str(path.relative_to(ROOT)) for package in ("pipeline", "jobs") for path in sources(package) if touches(path, "ray")}
    assert users == {f"pipeline/execute/{name}.py" for name in ("connection", "kernels", "ray", "submission")}


def test_only_object_stores_sources_and_the_file_system_use_fsspec() -> None:
    users = {str(path.relative_to(ROOT)) for package in ("pipeline", "jobs") for path in sources(package) if touches(path, "fsspec")}
    assert users == {"pipeline/store/objects.py", "pipeline/sources/listing.py", "pipeline/sources/fetch.py", "pipeline/read/filesystem.py"}


def test_only_the_store_knows_where_it_is() -> None:
    """What differs between a folder and an object store is a method of the store's protocol, never a question that others ask."""
    kinds = {"pipeline.store.local", "pipeline.store.objects"}
    outside = [path for package in ("pipeline", "jobs") for path in sources(package) if path.parent.name != "store"]
    assert [str(path) for path in outside if imported(path) & kinds] == []
    asked = [(path, node.lineno) for path in outside for node in ast.walk(ast.parse(path.read_text())) if getattr(node, "attr", None) == "local"]
    assert asked == []


def test_archiving_never_imports_compressai() -> None:
    users = {
        str(path.relative_to(ROOT)) for package in ("msinn_core", "pipeline", "jobs") for path in sources(package) if touches(path, "compressai")
    }
    assert users == set()  # `training/compat.py` loads it by name, on request only


def test_an_integer_model_archives_and_restores_without_torch(tmp_path: Path) -> None:
    """torch takes two seconds and 200 MB of every command and worker that imports it."""
    from PIL import Image

    (tmp_path / "in").mkdir()
    Image.effect_noise((64, 48), 40).convert("RGB").save(tmp_path / "in" / "a.png")
    script = """
import sys
from jobs.cli import main
assert main(["-q", "compress", "in", "archive", "--q", "4"]) == 0
assert main(["-q", "restore", "archive", "out"]) == 0
assert main(["-q", "verify", "archive", "--decode"]) == 0
from pipeline.archive.archive import Archive
assert Archive("archive").manifest(["status"]).column("status").to_pylist() == ["coded"]
print("torch" in sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("module", ["allocation", "curves", "histogram"])
def test_rate_allocation_is_pure_numpy(module: str) -> None:
    names = imported(ROOT / "pipeline" / "plan" / f"{module}.py")
    assert {name.split(".")[0] for name in names} <= {"__future__", "collections", "dataclasses", "numpy", "pipeline"}
    assert {name for name in names if name.startswith("pipeline")} <= {"pipeline.errors", *(f"pipeline.plan.{m}" for m in ("allocation", "curves"))}


def test_unit_tests_mirror_the_wings() -> None:
    """A test lies where the code lies that it is about, and uses that code."""
    unit = ROOT / "tests" / "unit"
    assert [path.name for path in unit.glob("test_*.py")] == []
    folders = {path.name: path for path in unit.iterdir() if any(path.glob("test_*.py"))}
    packages = {wing: f"pipeline.{wing}" for wing in WINGS} | {"core": "msinn_core", "jobs": "jobs", "infra": "infra"}
    assert folders.keys() <= packages.keys()
    strangers = [
        str(path)
        for name, folder in folders.items()
        for path in folder.glob("test_*.py")
        if not touches(path, packages[name]) and not (name == "infra" and "infra" in path.read_text())
    ]
    assert strangers == []


def test_every_folder_of_code_is_installed_and_explained() -> None:
    folders = {path.parent for package in ("msinn_core", "pipeline", "jobs") for path in (ROOT / package).rglob("__init__.py")}
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(".".join(folder.relative_to(ROOT).parts) for folder in folders)
    assert [str(folder) for folder in folders if not (folder / "README.md").exists()] == []


def test_top_level_is_what_the_design_says() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    known = {"pipeline", "msinn_core", "jobs", "infra", "tests"}
    assert known <= folders
    assert {name for name in folders if any((ROOT / name).rglob("*.py"))} - known - {"build", "demo-out"} == set()
