"""Packs what training needs on a machine that has a GPU and nothing of ours: tiles, a checkpoint, wheels. Called by train.sh.

Images are taken in turn from every source, as they are, until the whole working tree reaches the limit.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from msinn_core import VERSION
from msinn_core.training.config import named_sources
from pipeline.sources import Fetcher, scan

ROOT = Path(__file__).parents[2]
MARGIN = 1 << 20


def main() -> None:
    """Write `.gpu/` in the repository's root."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--data", nargs="+", required=True)
    p.add_argument("--valid", nargs="+", default=[])
    p.add_argument("--start", type=Path, help="checkpoint or model to begin from")
    p.add_argument("--limit-mib", type=int, default=64)
    p.add_argument("--python", default="3.12", help="version there, for compiled wheels")
    p.add_argument("--wheels", nargs="*", default=["google_crc32c"], help="packages that are missing there")
    arguments = p.parse_args()
    folder = ROOT / ".gpu"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    wheels(folder / "wheels", arguments.wheels, arguments.python)
    if arguments.start:
        shutil.copyfile(arguments.start, folder / "start.safetensors")
    for name, sources in named_sources(arguments.valid).items():
        _tar(folder / f"valid{'-' if name else ''}{name}.tar", list(sources), 4 << 20)
    tree = sum(path.stat().st_size for path in tree_files() if path.is_file())
    carried = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    room = (arguments.limit_mib << 20) - MARGIN - tree - carried
    if room < 1 << 20:
        sys.exit(f"{tree + carried:,} bytes without one training image: over the limit of {arguments.limit_mib} MiB")
    count, available = _tar(folder / "train.tar", arguments.data, room)
    total = tree + sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {count} of {available} training images; {total / 2**20:.1f} MiB with the working tree (limit {arguments.limit_mib})")


def tree_files() -> list[Path]:
    """What travels without being carried: all that git does not ignore."""
    listed = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in ROOT.rglob("*") if ROOT / ".gpu" not in path.parents]  # a copy that is no checkout: all of it travels


def wheels(folder: Path, names: list[str], python: str) -> None:
    """Unpacked, so that PYTHONPATH is all it takes."""
    folder.mkdir()
    platforms = [f"--platform=manylinux{tag}_x86_64" for tag in ("_2_28", "_2_27", "_2_17", "2014")]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", f"--python-version={python}", "--implementation=cp"]
    if names:
        subprocess.run([*command, *platforms, "-d", str(folder), *names], check=True)
    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder)
        wheel.unlink()
    # Our own name and version, which an installation would have left.
    ours = folder / f"msinn-{VERSION}.dist-info"
    ours.mkdir()
    (ours / "METADATA").write_text(f"Metadata-Version: 2.1\nName: msinn\nVersion: {VERSION}\n")


def _tar(path: Path, sources: list[str], limit: int) -> tuple[int, int]:
    """Images of all sources in turn, while they fit; how many, and how many there are."""
    listings = [scan(source).records for source in sources]
    turns = [listing[i] for i in range(max(map(len, listings), default=0)) for listing in listings if i < len(listing)]
    fetcher, used, count = Fetcher(), 10240, 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for record in turns:
            size = 512 + -(-record.part.length // 512) * 512
            if used + size > limit:
                break
            info = tarfile.TarInfo(f"{count:06d}{Path(record.name).suffix}")
            data = fetcher.fetch(record.part)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            used, count = used + size, count + 1
    return count, len(turns)


if __name__ == "__main__":
    main()
