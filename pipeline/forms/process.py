"""Forms made and read in a process of their own: libraries in C++ and Rust that read what anybody may have made, within bounds on memory and time."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.formats.images import ImageInfo
from pipeline.formats.process import Allowance, EndedError, Process, UnstartedError, limit_time, serve_requests
from pipeline.forms.base import Bounds, Form, Refusal, Stored
from pipeline.forms.family import EXACT_FORMS, decoder_of, form_named, form_of
from pipeline.forms.jpeg_exact import JpegExact
from pipeline.forms.libraries import AbsentError, imagecodecs, lepton, missing
from pipeline.forms.samples import Samples

ALLOWANCE = Allowance(seconds=20.0, seconds_per_mpx=15.0, seconds_per_mb=3.0)
"""Lossless coding is slow: a tenth of this is usual."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What became of a file.

    Attributes:
        stored: The smallest form among those that were asked for; None if none takes it and is smaller than the file.
        refused: A sentence for each that does not.
        absent: A sentence for each library that is missing.
        cost: In place of `stored`, where only the size was asked for; `cost_form` is whose.
    """

    stored: Stored | None = None
    refused: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    cost: int | None = None
    cost_form: str | None = None


class Forms(Process):
    """The exact forms, in another process; it starts when it is first needed. Safe to use from several threads.

    Args:
        max_pixels: Of pictures.
        max_file_bytes: Of what comes back.
    """

    def __init__(self, max_pixels: int, max_file_bytes: int) -> None:
        super().__init__("pipeline.forms.process:serve", (max_pixels, max_file_bytes, *ALLOWANCE.numbers))
        self._bounds = Bounds(max_pixels=max_pixels, max_file_bytes=max_file_bytes)

    def smallest(self, data: bytes, name: str, forms: Sequence[str]) -> Tried:
        """A file in the smallest of these forms, decoded and compared."""
        return self._tried("encode", data, name, forms)

    def cost(self, data: bytes, name: str, forms: Sequence[str]) -> Tried:
        """About what `smallest` takes, quickly."""
        return self._tried("cost", data, name, forms)

    def again(self, data: bytes, name: str, codec: str) -> Tried:
        """A file as it was stored before, by its codec."""
        return self._tried("again", data, name, [codec])

    def _tried(self, what: str, data: bytes, name: str, words: Sequence[str]) -> Tried:
        try:
            found = self.asked(what.encode(), ",".join(words).encode(), name.encode("utf-8", "surrogatepass"), data)
        except UnstartedError:
            found = _answered(what, ",".join(words), name, data, self._bounds)
        except EndedError as error:
            return Tried(refused=(_ended("making", error),))
        assert isinstance(found, Tried)
        return found

    def decode(self, codec: str, payload: bytes) -> bytes | Samples:
        """What is stored, given back.

        Raises:
            Refusal: It is damaged, or over a bound.
            AbsentError: Its library is not installed here.
        """
        try:
            found = self.asked(b"decode", codec.encode(), b"", payload)
        except UnstartedError:
            found = _answered("decode", codec, "", payload, self._bounds)
        except EndedError as error:
            raise Refusal(_ended("decoding", error)) from error
        if isinstance(found, Refusal | AbsentError):
            raise found
        assert isinstance(found, bytes | Samples)
        return found


def _ended(what: str, error: EndedError) -> str:
    return f"{what} it takes more processor time than its size explains" if error.too_long else f"{what} it ends the process ({error})"


def serve(descriptor: float, pixels: float, file_bytes: float, *allowed: float) -> None:
    """The other process.

    Args:
        descriptor: Of the socket.
        pixels: Of pictures, at most.
        file_bytes: Of what comes back, at most.
        allowed: The numbers of the `Allowance`.
    """
    allowance = Allowance(*allowed)
    missing(imagecodecs, lepton)  # loaded before memory is counted; what is missing is said when it is needed

    def answer(what: bytearray, words: bytearray, name: bytearray, data: bytearray) -> object:
        size = len(data)

        def on_header(info: ImageInfo) -> None:
            limit_time(allowance.of(size, info))

        bounds = Bounds(max_pixels=int(pixels), max_file_bytes=int(file_bytes), on_header=on_header)
        return _answered(what.decode(), words.decode(), name.decode("utf-8", "surrogatepass"), bytes(data), bounds)

    serve_requests(int(descriptor), answer, int(pixels), allowance)


def _answered(what: str, words: str, name: str, data: bytes, bounds: Bounds) -> object:
    try:
        if what == "decode":
            decoder = decoder_of(words)
            return Refusal(f"no codec of this msinn is called {words[:40]!r}") if decoder is None else decoder.decode(words, data, bounds)
        if what == "again":
            return _again(data, name, words, bounds)
        forms = [form_named(word) for word in words.split(",") if word]
        return _cost(data, name, forms, bounds) if what == "cost" else _smallest(data, name, forms, bounds)
    except MemoryError:
        error: Exception = Refusal("it takes more memory than its size explains")
    except (Refusal, AbsentError) as caught:
        error = caught
    if what == "decode":
        return error
    return Tried(absent=(str(error),)) if isinstance(error, AbsentError) else Tried(refused=(str(error),))


def _smallest(data: bytes, name: str, forms: Sequence[Form], bounds: Bounds) -> Tried:
    best: Stored | None = None
    refused: list[str] = []
    absent: list[str] = []
    for form in EXACT_FORMS:
        if form not in forms or not form.takes(data, name):
            continue
        try:
            found = form.encode(data, name, bounds)
            if best is None or len(found.data) < len(best.data):
                best = found
        except Refusal as error:
            # That a file is no smaller in Zstandard is nothing to tell anybody.
            refused += [f"{form.name}: {error}"] if form.name != "kept" else []
        except AbsentError:
            continue
        finally:
            absent += form.missing()
    return Tried(best, tuple(refused), tuple(absent))


def _cost(data: bytes, name: str, forms: Sequence[Form], bounds: Bounds) -> Tried:
    costs: list[tuple[int, str]] = []
    absent: list[str] = []
    for form in EXACT_FORMS:
        if form in forms and form.takes(data, name):
            absent += form.missing()
            with contextlib.suppress(AbsentError):
                costs.append((form.cost(data, name, bounds) or len(data), form.name))
    cost, name_of = min(costs, default=(None, None))
    return Tried(absent=tuple(absent), cost=cost, cost_form=name_of)


def _again(data: bytes, name: str, codec: str, bounds: Bounds) -> Tried:
    form = form_of(codec)
    if form is None:
        return Tried(refused=(f"no codec of this msinn is called {codec[:40]!r}",))
    if isinstance(form, JpegExact):
        return Tried(form.encode_as(codec, data))
    return Tried(form.encode(data, name, bounds))
