"""Coverage-guided inputs for the parsers, where atheris is installed: `python -m tests.fuzz.guided PARSER [FOLDER] [-max_total_time=60 ...]`.

A finding is written to the present folder as `crash-...`; the same command with that file repeats it.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.mutate import seeds

try:
    import atheris
except ImportError:
    sys.exit("the guided fuzzer needs atheris: pip install atheris")

with atheris.instrument_imports(include=["msinn_core.bitstream", "pipeline", "tarfile", "PIL.TiffImagePlugin", "PIL.PngImagePlugin"]):
    import pyarrow as pa

    from msinn_core import bitstream
    from msinn_core.errors import CodecError
    from pipeline.archive.commits import Commit
    from pipeline.archive.shard import iterate_damaged
    from pipeline.errors import PipelineError
    from pipeline.formats import images
    from pipeline.formats.parquet import groups, measure
    from pipeline.formats.tars import TarDamageError, members

import contextlib

from tests.fuzz.surfaces import GOLDEN, mended


def _bitstream(data: bytes) -> None:
    for one in (data, mended(data)):
        try:
            parsed = bitstream.parse(one)
            assert bitstream.parse(parsed.to_bytes()) == parsed
        except CodecError:
            pass


def _tar(data: bytes) -> None:
    list(iterate_damaged(io.BytesIO(data)))
    with contextlib.suppress(TarDamageError):
        list(members(io.BytesIO(data), len(data)))


def _parquet(data: bytes) -> None:
    for read in (lambda: groups(io.BytesIO(data), len(data)), lambda: measure(memoryview(data))):
        with contextlib.suppress(pa.ArrowInvalid):
            read()


def _commit(data: bytes) -> None:
    with contextlib.suppress(PipelineError):
        Commit.from_bytes(data, "commit")


def _image(data: bytes) -> None:
    images.load(data, max_pixels=100_000, name="x.png")


def _sound(pattern: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(GOLDEN.glob(pattern))]


def _images() -> list[bytes]:
    import numpy as np

    return list(seeds(np.zeros((16, 16, 3), np.uint8)).values())


PARSERS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "bitstream": (_bitstream, lambda: _sound("integer/*.msn")),
    "tar": (_tar, lambda: _sound("archive/*/shards/*.tar")),
    "parquet": (_parquet, lambda: _sound("archive/*/*/*.parquet")),
    "commit": (_commit, lambda: _sound("archive/*/commits/*.json")),
    "image": (_image, _images),
}


def main() -> None:
    """Fuzz one parser until it is stopped or finds something."""
    if sys.argv[1:2] == [] or sys.argv[1] not in PARSERS:
        sys.exit(f"{__doc__}\nparsers: {', '.join(PARSERS)}")
    parser, sound = PARSERS[sys.argv[1]]
    arguments = [sys.argv[0], *sys.argv[2:]]
    if not any(Path(argument).exists() for argument in sys.argv[2:]):
        corpus = Path("corpus-" + sys.argv[1])
        corpus.mkdir(exist_ok=True)
        for i, data in enumerate(sound()):
            (corpus / f"sound-{i}").write_bytes(data)
        arguments.append(str(corpus))
    atheris.Setup(arguments, parser)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
