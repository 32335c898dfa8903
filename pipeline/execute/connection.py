"""Joining a Ray instance, on this machine or a cluster: what of our code and settings travels there, and which secrets never do."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.execute.base import WorkersError
from pipeline.store import options
from pipeline.text import redacted

# Names of settings, of any library; and values that are secrets whatever their names.
_SECRET_SETTING = re.compile(
    r"(?:\b|_)(?:key|token|sas|auth|pwd)(?:\b|_)|secret|passw|passphrase|credential|authorization|cookie|connection_?string|"
    r"(?:access|account|api|private)_?key|(?:access|refresh|bearer|session)_?token",
    re.I,
)
_SECRET_VALUE = re.compile(r"AccountKey=|SharedAccess|Bearer |Basic [A-Za-z0-9+/=]{8}|-----BEGIN", re.I)

_OURS: list[str] = []
"""Settings that a local Ray wants, and a cluster that is joined later does not."""

_FORWARDED = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_REGION")


@dataclass(frozen=True)
class Resources:
    """What each actor takes.

    Attributes:
        gpus: GPUs or a part of one; 0 for one CPU.
        memory_bytes: Reserved memory, 0 for none: limits how many actors share a machine.
        labels: Ray node labels that its machine must have, e.g. `ray.io/accelerator-type`.
    """

    gpus: float = 0.0
    memory_bytes: int = 0
    labels: dict[str, str] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """For `ray.remote(...).options`."""
        found: dict[str, Any] = {"num_gpus": self.gpus} if self.gpus else {"num_cpus": 1}
        if self.memory_bytes:
            found["memory"] = self.memory_bytes
        if self.labels:
            found["label_selector"] = self.labels
        return found

    def fitting(self, available: dict[str, float]) -> int:
        """How many actors these cluster resources hold."""
        count = int(available.get("GPU", 0) / self.gpus) if self.gpus else int(available.get("CPU", 0))
        return min(count, int(available.get("memory", 0) / self.memory_bytes)) if self.memory_bytes else count


def connect(address: str | None, workers: int | None, resources: Resources | None = None) -> int:
    """Join the Ray instance at `address`, or start a local one.

    Returns:
        How many actors to run: `workers`, or as many as fit; never more than fit on this machine. On a cluster more may be asked for than fit now:
        they start when nodes join.

    Raises:
        WorkersError: No Ray there, or nothing fits.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None and "ray" not in sys.modules:
        _keep_to_this_machine()
    import ray

    try:
        # Ray puts the driver's folder first on its workers' path: a folder called `pipeline` there would be imported in place of ours.
        with _working_in(str(Path(__file__).parents[2])):
            if not ray.is_initialized():
                if address is None:
                    count = workers or os.cpu_count() or 1
                    ray.init(
                        address="local",
                        num_cpus=count,
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                        object_store_memory=128 * 2**20,
                    )
                else:
                    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=_environment())
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = address or "this machine"
        raise WorkersError(f"cannot use Ray at {where}: {str(error).splitlines()[0]}") from error
    resources = resources or Resources()
    fitting = resources.fitting(ray.cluster_resources())  # type: ignore[no-untyped-call]
    if address is not None and workers is not None:
        return workers
    if not fitting:
        kind = "GPU" if resources.gpus else "memory" if resources.memory_bytes else "CPU"
        hint = "" if address is None else "; with --workers N the run waits for nodes to join"
        raise WorkersError(f"Ray at {address or 'this machine'} has no {kind} to offer{hint}")
    return max(1, min(workers or fitting, fitting))


def fitting(resources: Resources) -> int:
    """How many actors the Ray instance that was joined has room for now."""
    import ray

    return resources.fitting(ray.cluster_resources())  # type: ignore[no-untyped-call]


def _keep_to_this_machine() -> None:
    """A local Ray listens on the loopback device only, and answers to a token that only its own processes have. Read when Ray is imported."""
    wanted = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
    if os.environ.get("RAY_AUTH_MODE", "token") == "token" and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        wanted["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    for name, value in wanted.items():
        if name not in os.environ:
            os.environ[name] = value
            _OURS.append(name)


@contextlib.contextmanager
def _working_in(folder: str) -> Iterator[None]:
    try:
        before: str | None = os.getcwd()
    except FileNotFoundError:
        before = None
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before or "/")


def packages() -> list[str]:
    """Folders of our code: it travels with the run, so that drivers and workers never differ and no image is rebuilt."""
    root = Path(__file__).parents[2]
    return [str(root / name) for name in ("msinn_core", "pipeline", "jobs")]


def _environment() -> dict[str, Any] | None:
    # Inside a submitted job Ray has the job's own environment, and refuses another.
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return None
    return {"env_vars": forwarded(), "py_modules": packages()}


def forwarded() -> dict[str, str]:
    """Settings of the storage libraries that workers need too; never keys, which machines get from their roles."""
    found = {name: _without_secrets(name, value) for name, value in os.environ.items() if name.startswith("FSSPEC_") or name in _FORWARDED}
    return {name: value for name, value in found.items() if value is not None}


def withheld() -> list[str]:
    """Names of settings that do not travel, or only in part, because they hold secrets."""
    sent = forwarded()
    names = [name for name, value in os.environ.items() if (name.startswith("FSSPEC_") or name in _FORWARDED) and sent.get(name) != value]
    names += [name for each in options.known().values() for name, value in each.items() if without_secrets(each).get(name) != value]
    return sorted(names)


def without_secrets(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a store that may travel to a cluster."""
    kept: dict[str, Any] = _kept(settings)
    return kept


def _without_secrets(name: str, value: str) -> str | None:
    """A setting, which may be a JSON object of settings, without its secrets; None if it is one itself."""
    if _SECRET_SETTING.search(name):
        return None
    try:
        settings = json.loads(value)
    except (ValueError, RecursionError):
        settings = None
    if isinstance(settings, dict | list):
        kept = _kept(settings)
        return value if kept == settings else json.dumps(kept)
    return None if _is_secret(value) else value


def _is_secret(value: Any) -> bool:
    return isinstance(value, str) and (redacted(value) != value or _SECRET_VALUE.search(value) is not None)


def _kept(settings: Any) -> Any:
    """Settings without those that are secrets by their name or their value, however deep."""
    if isinstance(settings, dict):
        return {key: _kept(value) for key, value in settings.items() if not _SECRET_SETTING.search(str(key)) and not _is_secret(value)}
    if isinstance(settings, list):
        return [_kept(value) for value in settings if not _is_secret(value)]
    return settings


def disconnect() -> None:
    """Leave the Ray instance; a local one ends."""
    import ray

    ray.shutdown()
    while _OURS:
        os.environ.pop(_OURS.pop(), None)
