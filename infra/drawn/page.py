"""A page to draw on: shapes with smooth or hard edges, text in the ways that screens show it, one style a page, all from one seeded generator."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 512

Colour = tuple[int, int, int]
Point = tuple[float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

DEFAULT, BITMAP = "Pillow's outline font", "Pillow's bitmap font"
TRAIN_FONTS = (DEFAULT, "DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSans-Oblique", BITMAP)
VALID_FONTS = ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmss10", "cmtt10")
"""Never used for training tiles."""

_SUPERSAMPLES = 4
_SUBPIXEL_FILTER = np.array([1, 2, 3, 2, 1], np.float32) / 9
_COMMON_WORDS = (
    "the of and to in is that for it as was with be by on not he this are or his from at which but have an they you were there can all one been "
    "has who if would their will when more no so what up said out about time than into only could some other new then first any like over such "
    "even most made after also many must before back through years where much your way down should because long each just state those people "
    "how good world still own see work life being under never last might great year same another while since against right three use next"
)


@cache
def font(name: str, size: int) -> Font:
    """One of `TRAIN_FONTS` or `VALID_FONTS` at a size in pixels; matplotlib carries those that Pillow does not.

    Raises:
        OSError: No such font.
    """
    if name == BITMAP:
        return ImageFont.load_default_imagefont()
    if name == DEFAULT:
        return ImageFont.load_default(size)
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def blend(a: Colour, b: Colour, share: float) -> Colour:
    """`a` with a share of `b`."""
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """What a page has in common.

    Attributes:
        paper: Background.
        ink: Of text and main lines.
        accents: Five colours that stand out from the paper.
        text: `grey` (antialiased), `hard` (two colours) or `subpixel` (a mask for each of red, green and blue, as on LCD screens).
        smooth: Shapes are antialiased.
        fonts: Names to choose from.
    """

    paper: Colour
    ink: Colour
    accents: tuple[Colour, ...]
    text: str
    smooth: bool
    fonts: tuple[str, ...]

    @property
    def pale(self) -> Colour:
        """A surface that stands off the paper a little."""
        return blend(self.paper, self.ink, 0.07)

    @property
    def muted(self) -> Colour:
        """Of minor text and lines."""
        return blend(self.paper, self.ink, 0.5)


def style(rng: random.Random, fonts: tuple[str, ...], *, dark: float = 0.4) -> Style:
    """A style by chance; a share `dark` of them is light on dark."""
    grey = rng.choice((0, 0, 0, rng.randrange(50)))
    tint = [rng.randrange(12) for _ in range(3)]
    low: Colour = (grey + tint[0], grey + tint[1], grey + tint[2])
    high: Colour = rng.choice(((255, 255, 255), (255, 255, 255), (255 - tint[0], 255 - tint[1], 250 - 2 * tint[2])))
    paper, ink = (low, high) if rng.random() < dark else (high, low)
    dull = rng.choice((0.0, 0.0, 0.25, 0.5))
    accents = tuple(blend(vivid(rng), (128, 128, 128), dull) for _ in range(5))
    text = rng.choices(("grey", "subpixel", "hard"), (5, 3, 2))[0]
    return Style(paper=paper, ink=ink, accents=accents, text=text, smooth=rng.random() < 0.75, fonts=fonts)


def vivid(rng: random.Random) -> Colour:
    """A colour with one strong and one weak component."""
    parts = [rng.randrange(170, 256), rng.randrange(256), rng.randrange(90)]
    rng.shuffle(parts)
    return parts[0], parts[1], parts[2]


class Page:
    """RGB picture of `SIDE` pixels.

    Args:
        rng: Decides everything that is not said.
        look: Style of the page.
    """

    def __init__(self, rng: random.Random, look: Style) -> None:
        self.rng = rng
        self.look = look
        self.image = Image.new("RGB", (SIDE, SIDE), look.paper)
        self.draw = ImageDraw.Draw(self.image)

    # Shapes ----------------------------------------------------------------------------------------------------------------------------------------

    def _shape(self, method: str, points: Sequence[Point], colour: Colour, *, hollow: bool = False, width: int = 1, **options: object) -> None:
        options |= {"width": width} if hollow or method == "line" else {}
        key = "outline" if hollow else "fill"
        if not self.look.smooth:
            getattr(self.draw, method)([(round(x), round(y)) for x, y in points], **{key: colour}, **options)
            return
        # A mask over the shape alone, some times as fine, then reduced.
        left, top = (int(min(axis)) - width - 1 for axis in zip(*points, strict=True))
        right, bottom = (int(max(axis)) + width + 2 for axis in zip(*points, strict=True))
        s = _SUPERSAMPLES
        mask = Image.new("L", (s * (right - left), s * (bottom - top)))
        fine = [(s * (x - left), s * (y - top)) for x, y in points]
        options = {name: s * value if name in ("width", "radius") and isinstance(value, int) else value for name, value in options.items()}
        getattr(ImageDraw.Draw(mask), method)(fine, **{key: 255}, **options)
        self.image.paste(colour, (left, top), mask.reduce(s))

    def rect(self, x: float, y: float, w: float, h: float, colour: Colour, *, hollow: bool = False, width: int = 1, radius: int = 0) -> None:
        """A rectangle on whole pixels; only rounded corners are antialiased."""
        box = [(round(x), round(y)), (round(x + w) - 1, round(y + h) - 1)]
        if w < 1 or h < 1:
            return
        if radius and min(w, h) > 2 * radius:
            self._shape("rounded_rectangle", box, colour, hollow=hollow, width=width, radius=radius)
        elif hollow:
            self.draw.rectangle(box, outline=colour, width=width)
        else:
            self.draw.rectangle(box, fill=colour)

    def line(self, points: Sequence[Point], colour: Colour, width: int = 1) -> None:
        """Joined lines."""
        self._shape("line", points, colour, width=width, joint="curve")

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """A filled polygon."""
        self._shape("polygon", points, colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour, *, hollow: bool = False, width: int = 1) -> None:
        """An ellipse about a point."""
        self._shape("ellipse", [(x - rx, y - ry), (x + rx, y + ry)], colour, hollow=hollow, width=width)

    def pie(self, x: float, y: float, radius: float, start: float, end: float, colour: Colour) -> None:
        """A sector, in degrees from three o'clock."""
        self._shape("pieslice", [(x - radius, y - radius), (x + radius, y + radius)], colour, start=start, end=end)

    # Text ------------------------------------------------------------------------------------------------------------------------------------------

    def font(self, low: int = 10, high: int = 18, name: str = "") -> Font:
        """A font of the style at a size in [low, high]."""
        return font(name or self.rng.choice(self.look.fonts), self.rng.randint(low, high))

    def mono(self, low: int = 10, high: int = 16) -> Font:
        """The style's font of fixed pitch, or any if there is none."""
        names = [name for name in self.look.fonts if "Mono" in name or "tt" in name] or list(self.look.fonts)
        return self.font(low, high, names[0])

    def text(self, x: float, y: float, words: str, face: Font, colour: Colour | None = None) -> int:
        """Write a line from its top left corner; returns its width in pixels."""
        colour = self.look.ink if colour is None else colour
        x, y = round(x), round(y)
        width = int(face.getlength(words)) + 1
        if self.look.text == "subpixel" and isinstance(face, ImageFont.FreeTypeFont):
            self._subpixel(x, y, words, face, colour)
        else:
            self.draw.fontmode = "1" if self.look.text == "hard" else "L"
            self.draw.text((x, y), words, fill=colour, font=face)
        return width

    def _subpixel(self, x: int, y: int, words: str, face: ImageFont.FreeTypeFont, colour: Colour) -> None:
        fine = face.font_variant(size=3 * face.size)
        width, height = int(face.getlength(words)) + 3, round(1.5 * face.size)
        mask = Image.new("L", (3 * width, 3 * height))
        ImageDraw.Draw(mask).text((0, 0), words, fill=255, font=fine)
        rows = np.asarray(mask.reduce((1, 3)), np.float32)
        padded = np.pad(rows, ((0, 0), (2, 2)))
        smooth = sum(weight * padded[:, i : i + rows.shape[1]] for i, weight in enumerate(_SUBPIXEL_FILTER))
        cover = np.asarray(smooth).reshape(len(rows), width, 3) / 255
        box = (x, y, x + width, y + len(rows))
        under = np.asarray(self.image.crop(box), np.float32)
        mixed = (under + cover * (np.array(colour, np.float32) - under)).round().astype(np.uint8)
        self.image.paste(Image.fromarray(mixed), (x, y))

    def words(self, count: int) -> str:
        """Words of English and words that no language has, now and then a number."""
        rng = self.rng
        found = []
        for _ in range(count):
            kind = rng.random()
            if kind < 0.55:
                found.append(rng.choice(_COMMON_WORDS.split()))
            elif kind < 0.92:
                found.append("".join(rng.choice("bcdfghlmnprstvw") + rng.choice("aeiou") for _ in range(rng.randint(1, 5))))
            else:
                found.append(f"{rng.random() * 10 ** rng.randint(0, 5):.{rng.randint(0, 2)}f}")
        if rng.random() < 0.15:
            found[0] = found[0].capitalize()
        return " ".join(found)

    def paragraph(self, x: float, y: float, w: float, h: float, face: Font, colour: Colour | None = None, *, spacing: float = 1.35) -> float:
        """Fill a box with lines of text, the last of each paragraph shorter; returns where the next line would begin."""
        step = spacing * (getattr(face, "size", 11))
        while h >= step:
            line = self.words(max(1, int(w / (3.6 * step / spacing))) + 2)
            while line and face.getlength(line) > w:
                line = line.rpartition(" ")[0]
            if self.rng.random() < 0.12:
                line = line[: len(line) // 2] + "."
            self.text(x, y, line, face, colour)
            y, h = y + step, h - step
        return y
