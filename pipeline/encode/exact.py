"""Images that the network does not code, in the smallest form that gives them back exactly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from pipeline.archive.shard import stored_bytes
from pipeline.encode.item import Item
from pipeline.encode.tasks import ImageTask, WorkConfig
from pipeline.formats.outcome import Kept, Reason
from pipeline.forms.family import form_named
from pipeline.forms.process import Forms, Tried
from pipeline.forms.samples import Samples
from pipeline.limits import DEFAULT

_LEFT_ALONE = frozenset((Reason.CRASHED, Reason.UNREADABLE))
"""What ended a process once is not given to another library; what is not there cannot be."""


class ExactForms:
    """Finds them, in a process of their own.

    Args:
        config: The run's.
    """

    def __init__(self, config: WorkConfig) -> None:
        self._config = config
        self._forms = Forms(config.max_pixels, DEFAULT.max_file_bytes)
        self._absent: set[str] = set()

    @property
    def remarks(self) -> tuple[str, ...]:
        """A sentence for each library that was missing when it was wanted."""
        return tuple(f"{sentence}; until then such files take another form, or are kept" for sentence in sorted(self._absent))

    def wants(self, task: ImageTask, source: bytes) -> bool:
        """Whether a file is to be stored exactly although the network could code it."""
        return self._config.lossless or task.lossless or (self._config.lossless_jpeg and _JPEG.takes(source, ""))

    def settled(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each of which is not coded in its exact form: some turn out only late to be better kept."""
        for item in items:
            self.settle(item)
            yield item

    def settle(self, item: Item, *, only_cost: bool = False) -> None:
        """Give an image that is kept its smallest exact form: `stored`. Nothing, where that is the file.

        Args:
            item: With its source.
            only_cost: Say only what it would take: `exact_bytes`.
        """
        if item.source is None or item.settled or item.reason in _LEFT_ALONE:
            return
        if not isinstance(item.outcome, Kept):
            if only_cost and self._config.all_forms and item.coded:
                self._ask_cost(item, item.source, self._offered(item.task, item.source))
            return
        item.settled = True
        name, codec = item.task.record.name, item.task.codec
        if codec == "kept":
            return
        if codec is not None:
            item.stored = self._forms.again(item.source, name, codec).stored
            return
        names = self._offered(item.task, item.source)
        if not names:
            return
        if only_cost:
            self._ask_cost(item, item.source, names)
            return
        tried = self._forms.smallest(item.source, name, names)
        self._take(item, item.outcome, item.source, tried)
        self._absent.update(tried.absent)

    def cost(self, item: Item) -> tuple[int | None, str | None]:
        """About what the smallest exact form of an item takes that would be coded, and its name; None if its file is no larger."""
        if item.source is None or not (names := self._offered(item.task, item.source)):
            return None, None
        tried = self._forms.cost(item.source, item.task.record.name, names)
        self._absent.update(tried.absent)
        pays = tried.cost is not None and _pays(tried.cost, item.source)
        return (tried.cost, tried.cost_form) if pays else (None, None)

    def decode_jxl(self, data: bytes) -> bytes | Samples:
        """The samples of a JPEG XL file. Raises as `Forms.decode`."""
        return self._forms.decode("jxl", data)

    def samples(self, item: Item) -> Samples | None:
        """The samples that an item's exact form gives back; None if that is a file, or it has none."""
        if item.stored is None:
            return None
        found = self._forms.decode(item.stored.codec, item.stored.data)
        return found if isinstance(found, Samples) else None

    def _ask_cost(self, item: Item, source: bytes, names: list[str]) -> None:
        tried = self._forms.cost(source, item.task.record.name, names)
        if tried.cost is not None and _pays(tried.cost, source):
            item.exact_bytes, item.exact_form = tried.cost, tried.cost_form
        self._absent.update(tried.absent)

    def _take(self, item: Item, outcome: Kept, source: bytes, tried: Tried) -> None:
        if tried.stored is not None and _pays(len(tried.stored.data), source):
            item.stored = tried.stored
        elif tried.refused or tried.absent:
            # Why it is kept as it is although it could have been smaller: a person can look at it.
            known = outcome.message or ""
            why = "; ".join(filter(None, (known, *(text for text in (*tried.refused, *tried.absent) if not known or known not in text))))
            item.outcome = replace(outcome, message=why[:300])

    def _offered(self, task: ImageTask, source: bytes) -> list[str]:
        """Names of the forms that the run offers to a file that is kept."""
        offered = ["jpeg-exact"]
        if self._config.lossless or self._config.max_error is not None or self._config.all_forms or task.lossless:
            offered += ["kept"] if self._config.exact_bytes else ["pixels-exact", "kept"]
        return [form for form in offered if form_named(form).takes(source, task.record.name)]


_JPEG = form_named("jpeg-exact")


def _pays(size: int, source: bytes) -> bool:
    return stored_bytes(size) < stored_bytes(len(source))
