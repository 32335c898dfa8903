"""Image files are decoded in a process of their own: see `process`."""

from __future__ import annotations

from pipeline.formats import images
from pipeline.formats.images import ImageInfo, LoadedImage
from pipeline.formats.outcome import Reason
from pipeline.formats.process import Allowance, EndedError, Process, UnstartedError, limit_time, serve_requests


class Loader(Process):
    """`images.load` in another process. Safe to use from several threads, one file at a time.

    Args:
        max_pixels: Images above are not decoded.
        allowance: What decoding takes at most.
    """

    def __init__(self, max_pixels: int, allowance: Allowance | None = None) -> None:
        allowed = allowance or Allowance()
        super().__init__("pipeline.formats.decoding:serve", (max_pixels, *allowed.numbers))
        self._max_pixels = max_pixels

    def load(self, data: bytes, *, name: str = "") -> LoadedImage:
        """Decode one file; see `images.load`. What takes too much is kept with a reason, and what ends the process twice."""
        try:
            found = self.asked(name.encode("utf-8", "surrogatepass"), data)
        except UnstartedError:
            return images.load(data, max_pixels=self._max_pixels, name=name)
        except EndedError as error:
            if error.too_long:
                message = "decoding it takes more processor time than its size explains"
                return LoadedImage(info=ImageInfo(), reason=Reason.DECODE_LIMIT, message=message)
            return LoadedImage(info=ImageInfo(), reason=Reason.CRASHED, message=f"decoding it ends the decoder ({error})")
        assert isinstance(found, LoadedImage)
        return found


def serve(descriptor: float, pixels: float, *allowed: float) -> None:
    """Decode what comes over a socket until it ends: the other process.

    Args:
        descriptor: Of the socket.
        pixels: Images above are not decoded.
        allowed: The numbers of the `Allowance`.
    """
    max_pixels, allowance = int(pixels), Allowance(*allowed)

    def answer(name: bytearray, data: bytearray) -> LoadedImage:
        return _load(bytes(data), name.decode("utf-8", "surrogatepass"), max_pixels, allowance)

    serve_requests(int(descriptor), answer, max_pixels, allowance)


def _load(data: bytes, name: str, max_pixels: int, allowance: Allowance) -> LoadedImage:
    return images.load(data, max_pixels=max_pixels, name=name, on_header=lambda info: limit_time(allowance.of(len(data), info)))
