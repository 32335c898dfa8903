"""Runs as jobs of a Ray cluster: sent once, followed, joined by whoever sends the same again."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UsageError
from pipeline.execute.base import WorkersError
from pipeline.execute.connection import forwarded, packages

_CHECK = "import sys; from pipeline.execute.kernels import main; sys.exit(main())"
_DESTINATION, _COMMAND = "msinn.destination", "msinn.command"


@dataclass(frozen=True)
class Submission:
    """A job on the cluster.

    Attributes:
        id: Of this attempt.
        joined: Whether it was running before.
    """

    id: str
    joined: bool


class Cluster:
    """The job server of a Ray cluster.

    Args:
        address: Its URL, e.g. `http://127.0.0.1:8265`.

    Raises:
        WorkersError: It does not answer.
    """

    def __init__(self, address: str) -> None:
        from ray.job_submission import JobSubmissionClient

        self.address = address
        try:
            self._client = JobSubmissionClient(address)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise WorkersError(f"no Ray job server at {address}: {_advice(error)}") from error

    def submit(
        self,
        arguments: Sequence[str],
        destination: str,
        *,
        python: str = "python",
        pip: Sequence[str] = (),
        env: dict[str, str] | None = None,
        installed: bool = False,
        slow: bool = False,
    ) -> Submission:
        """Start `msinn ARGUMENTS` on the cluster, unless it is running there.

        The job first asks the cluster's machines for the compiled kernels, and ends with one sentence where they lack them; see `kernels`.

        Args:
            arguments: Of `msinn`.
            destination: The archive's URL: one job at a time for each.
            python: The cluster's interpreter.
            pip: Packages that the cluster's image lacks.
            env: Variables for the job and its workers.
            installed: Use the msinn of the cluster's image; else this installation's code, with its compiled kernels, travels.
            slow: Run also where compiled kernels are missing.

        Raises:
            UsageError: Another command is writing there.
            WorkersError: The cluster refuses.
        """
        destination = destination.rstrip("/")
        command = " ".join(shlex.quote(argument) for argument in arguments)
        for job in self._jobs():
            metadata = job.metadata or {}
            if metadata.get(_DESTINATION) != destination or job.status.is_terminal():
                continue
            if metadata.get(_COMMAND) == command:
                return Submission(str(job.submission_id), True)
            raise UsageError(
                f"job {job.submission_id} is writing to {destination} with other options (msinn {metadata.get(_COMMAND)}): wait, or stop it first"
            )
        runtime_env: dict[str, Any] = {"env_vars": {**forwarded(), "RAY_USAGE_STATS_ENABLED": "0", **(env or {})}}
        if not installed:
            runtime_env["py_modules"] = packages()
        if pip:
            runtime_env["pip"] = list(pip)
        try:
            found = self._client.submit_job(
                entrypoint=_entrypoint(python, command, slow=slow),
                submission_id=f"msinn-{hashlib.sha256(destination.encode()).hexdigest()[:8]}-{uuid.uuid4().hex[:8]}",
                runtime_env=runtime_env,
                metadata={_DESTINATION: destination, _COMMAND: command},
            )
        except (RuntimeError, ConnectionError, OSError, ValueError) as error:
            raise WorkersError(f"the cluster at {self.address} refuses the job: {str(error).strip().splitlines()[0]}") from error
        return Submission(found, False)

    def follow(self, submission: str, write: Callable[[str], object]) -> int:
        """Pass on the job's log until it ends; returns its exit code.

        Raises:
            WorkersError: The cluster is gone.
        """

        import aiohttp

        async def tail() -> None:
            async for text in self._client.tail_job_logs(submission):
                write(text)

        try:
            asyncio.run(tail())
            info = self._client.get_job_info(submission)
            while not info.status.is_terminal():
                time.sleep(2)  # something between here and there closed the log
                info = self._client.get_job_info(submission)
        except (RuntimeError, ConnectionError, OSError, aiohttp.ClientError) as error:
            raise WorkersError(f"lost sight of job {submission}: {str(error).strip().splitlines()[0]}; submit the same again to join it") from error
        if info.driver_exit_code is not None:
            # A signal is what ends a driver when its machine runs out of memory.
            return int(info.driver_exit_code) if info.driver_exit_code >= 0 else WorkersError.exit_code
        if info.status.name == "SUCCEEDED":
            return 0
        if info.status.name == "STOPPED":
            return 130
        raise WorkersError(f"job {submission} did not run: {' '.join((info.message or info.status.name).split())[:500]}")

    def _jobs(self) -> list[Any]:
        try:
            return list(self._client.list_jobs())
        except (RuntimeError, ConnectionError, OSError) as error:
            raise WorkersError(f"the Ray job server at {self.address} does not answer: {str(error).strip().splitlines()[0]}") from error


def _entrypoint(python: str, command: str, *, slow: bool) -> str:
    run = f"{shlex.quote(python)} -P -m jobs.cli {command}"
    # exec: a signal to the job is the run's, and the way it ends is the job's.
    # -c: Ray shows workers the folder of a driver's script, and that of `kernels` has a `ray.py`.
    return run if slow else f"{shlex.quote(python)} -P -c {shlex.quote(_CHECK)} && exec {run}"


def _advice(error: Exception) -> str:
    """The first line of what Ray says, and what to do."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if any(word in str(error).lower() for word in ("token", "unauthorized", "401", "403", "forbidden")):
        return f"it wants a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's ({said})"
    return f"give its address, such as http://head-node:8265, with --address or RAY_API_SERVER_ADDRESS ({said})"


def default_address() -> str:
    """Where `ray job` would look."""
    return os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
