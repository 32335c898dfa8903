"""Imports obey the arrows of the design: jobs -> pipeline -> msinn_core, and only named modules touch Ray, fsspec or compressai."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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


def test_only_actors_use_ray() -> None:
    users = {path.name for package in ("pipeline", "jobs") for path in sources(package) if touches(path, "ray")}
    assert users == {"actors.py", "submission.py"}


def test_only_storage_and_sources_use_fsspec() -> None:
    users = {str(path.relative_to(ROOT)) for package in ("pipeline", "jobs") for path in sources(package) if touches(path, "fsspec")}
    assert users == {"pipeline/storage.py", "pipeline/sources/scan.py", "pipeline/sources/fetch.py"}


def test_archiving_never_imports_compressai() -> None:
    users = {
        str(path.relative_to(ROOT)) for package in ("msinn_core", "pipeline", "jobs") for path in sources(package) if touches(path, "compressai")
    }
    assert users == set()  # `training/compat.py` loads it by name, on request only


def test_rate_allocation_is_pure_numpy() -> None:
    assert {name.split(".")[0] for name in imported(ROOT / "pipeline" / "rate.py")} <= {
        "__future__",
        "collections",
        "dataclasses",
        "numpy",
        "pipeline",
    }


def test_top_level_is_what_the_design_says() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    known = {"pipeline", "msinn_core", "jobs", "infra", "tests"}
    assert known <= folders
    assert {name for name in folders if any((ROOT / name).rglob("*.py"))} - known - {"build", "demo-out"} == set()
