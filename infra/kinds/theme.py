"""The look of a page of a user interface, and small parts that pages are made of: all HTML and CSS, all by chance."""

from __future__ import annotations

import colorsys
import html
import random
import re
from dataclasses import dataclass

from infra.kinds.words import Words

FONTS = ("Roboto", "Open Sans", "Lato", "Cantarell", "DejaVu Sans", "Liberation Sans", "Noto Sans", "Carlito", "DejaVu Serif", "Noto Serif")
CODE_FONTS = ("Fira Code", "Inconsolata", "DejaVu Sans Mono", "Liberation Mono", "Hack")
_TOKENS = re.compile(
    r"(?P<c>#.*)|(?P<s>'[^']*'|\"[^\"]*\")|(?P<k>"
    r"\b(?:def|class|return|if|elif|else|for|while|in|not|and|or|import|from|try|except|raise|with|as|None|True"
    r"|False|self|yield|lambda|pass|is|del|break)\b)|(?P<n>\b\d[\w.]*)|(?P<f>\b\w+(?=\())"
)


def colour(hue: float, saturation: float, lightness: float) -> str:
    """In CSS's hexadecimal form, of parts from 0 to 1."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue % 1, lightness, saturation))


@dataclass(frozen=True)
class Look:
    """Colours, fonts and measures that a page has in common."""

    dark: bool
    back: str
    surface: str
    ink: str
    muted: str
    border: str
    accents: tuple[str, ...]
    font: str
    code_font: str
    size: int
    radius: int
    gap: int
    shadow: bool


def look(rng: random.Random) -> Look:
    """A look by chance; two of five are dark."""
    hue, tint, dark = rng.random(), rng.choice((0.0, 0.06, 0.15, 0.3)), rng.random() < 0.4
    levels = (rng.uniform(0.05, 0.13), rng.uniform(0.14, 0.2), 0.9, 0.6, 0.28) if dark else (rng.uniform(0.92, 0.98), 1.0, 0.12, 0.45, 0.84)
    back, surface, ink, muted, border = (colour(hue, tint, level) for level in levels)
    if not dark and rng.random() < 0.4:
        back = "#ffffff"
    accents = tuple(colour(hue + offset, rng.uniform(0.45, 0.95), rng.uniform(0.38, 0.6)) for offset in (0.0, 0.1, 0.33, 0.5, 0.72))
    size, radius, gap = rng.choice((11, 12, 13, 13, 14, 15, 16)), rng.choice((0, 2, 4, 6, 10, 16)), rng.choice((4, 6, 8, 12))
    return Look(dark, back, surface, ink, muted, border, accents, rng.choice(FONTS), rng.choice(CODE_FONTS), size, radius, gap, rng.random() < 0.5)


def css(of: Look) -> str:
    """What every page begins with."""
    shadow = "box-shadow:0 1px 4px rgba(0,0,0,.25);" if of.shadow else f"border:1px solid {of.border};"
    tokens = dict(zip("csknf", (of.muted, of.accents[2], of.accents[0], of.accents[3], of.accents[1]), strict=True))
    return (
        f"*{{box-sizing:border-box}}body{{margin:0;height:100vh;overflow:hidden;background:{of.back};color:{of.ink};font:{of.size}px '{of.font}';"
        f"display:flex;flex-direction:column}}.row{{display:flex;gap:{of.gap}px;align-items:center}}.col{{display:flex;"
        f"flex-direction:column;gap:{of.gap}px}}"
        f".card{{background:{of.surface};border-radius:{of.radius}px;padding:{of.gap + 4}px;{shadow}"
        f"overflow:hidden}}.muted{{color:{of.muted};font-size:.85em}}"
        f".btn{{border-radius:{of.radius}px;padding:4px 12px;border:1px solid {of.border};background:{of.surface};color:{of.ink};font:inherit}}"
        f".main{{background:{of.accents[0]};color:#fff;border-color:transparent}}.field{{border:1px solid {of.border};"
        f"border-radius:{of.radius}px;padding:5px 8px;"
        f"background:{of.back};width:100%;white-space:nowrap;overflow:hidden}}.grow{{flex:1;min-width:0;min-height:0}}.bar{{background:{of.surface};"
        f"border-bottom:1px solid {of.border};padding:6px 10px}}.side{{background:{of.surface};border-right:1px solid {of.border};padding:8px}}"
        f"h1,h2,h3{{margin:0 0 4px}}table{{border-collapse:collapse;width:100%}}td,th{{padding:{of.gap // 2 + 2}px 8px;"
        f"border-bottom:1px solid {of.border};"
        f"text-align:left;white-space:nowrap}}pre{{margin:0;font-family:'{of.code_font}';line-height:1.4}}"
        f".on{{background:{of.accents[0]}33;border-radius:{of.radius}px}}" + "".join(f".t{key}{{color:{value}}}" for key, value in tokens.items())
    )


class Parts:
    """Small parts of pages.

    Args:
        rng: Decides everything that is not said.
        of: The look.
        said: What is written.
    """

    def __init__(self, rng: random.Random, of: Look, said: Words) -> None:
        self.rng, self.look, self.said = rng, of, said

    def title(self, low: int = 1, high: int = 3) -> str:
        """A few words."""
        return html.escape(self.said.title(self.rng, low, high))

    def text(self, least: int = 60) -> str:
        """Sentences."""
        return html.escape(self.said.paragraph(self.rng, least))

    def name(self) -> str:
        """Of a person."""
        return self.said.name(self.rng)

    def number(self) -> str:
        """As tables and tiles show them."""
        value = self.rng.lognormvariate(5, 3)
        return self.rng.choice((f"{value:,.0f}", f"{value:,.2f}", f"{self.rng.uniform(-40, 90):+.1f}%", f"${value:,.2f}"))

    def when(self) -> str:
        """A day or a time."""
        rng = self.rng
        return rng.choice(
            (f"{rng.randint(1, 12)}:{rng.randrange(60):02d}", f"20{rng.randint(10, 30)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}")
        )

    def accent(self) -> str:
        """One of the look's five colours."""
        return self.rng.choice(self.look.accents)

    def icon(self, size: int = 16) -> str:
        """A sign of two or three strokes."""
        rng, parts = self.rng, []
        for _ in range(rng.randint(2, 3)):
            a, b, c, d = (rng.randint(2, 22) for _ in range(4))
            parts.append(
                rng.choice((f"M{a} {b}L{c} {d}", f"M{a} 4v16h{max(2, 20 - a)}", f"M12 12m-{c // 3 + 2} 0a{c // 3 + 2} {c // 3 + 2} 0 1 0 12 0"))
            )
        stroke = rng.choice(("currentColor", self.accent()))
        return (
            f'<svg width={size} height={size} viewBox="0 0 24 24" fill=none stroke="{stroke}" stroke-width=2 '
            f'style="flex:none"><path d="{" ".join(parts)}"/></svg>'
        )

    def face(self, size: int = 28) -> str:
        """A portrait: a disc with initials."""
        return (
            f'<span style="flex:none;width:{size}px;height:{size}px;border-radius:50%;background:{self.accent()};color:#fff;display:inline-flex;'
            f'align-items:center;justify-content:center;font-size:{size * 0.42:.0f}px">{"".join(word[0] for word in self.name().split())}</span>'
        )

    def picture(self, style: str) -> str:
        """Where pages show a photograph: shades of colour over each other."""
        rng = self.rng
        a, b, c = (colour(rng.random(), rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8)) for _ in range(3))
        kind = rng.choice((f"linear-gradient({rng.randrange(360)}deg,{a},{b},{c})", f"radial-gradient(at {rng.randrange(100)}% 30%,{a},{b} 40%,{c})"))
        return f'<div style="background:{kind};{style}"></div>'

    def button(self) -> str:
        """With a word on it, one of two in the main colour."""
        return f'<button class="btn {self.rng.choice(("", "main"))}">{self.title(1, 2)}</button>'

    def menu(self, count: int, width: int) -> str:
        """A column of entries, one of them chosen."""
        chosen = self.rng.randrange(count)
        entries = (f'<div class="row{" on" if i == chosen else ""}" style="padding:5px">{self.icon()}{self.title(1, 2)}</div>' for i in range(count))
        return f'<div class="side col" style="width:{width}px;overflow:hidden">{"".join(entries)}</div>'

    def top(self) -> str:
        """A bar with a title, a field and buttons."""
        middle = f'<span class="field grow muted">{self.title(2, 4)}</span>' if self.rng.random() < 0.6 else '<span class="grow"></span>'
        return f'<div class="bar row">{self.icon(20)}<b>{self.title(1, 2)}</b>{middle}{self.button()}{self.face()}</div>'

    def code(self, count: int) -> str:
        """Numbered lines in the colours of an editor."""
        found = []
        for i, line in enumerate(self.said.lines(self.rng, count), self.rng.randrange(900)):
            done, at = "", 0
            for match in _TOKENS.finditer(line):
                done += html.escape(line[at : match.start()]) + f'<span class="t{match.lastgroup}">{html.escape(match[0])}</span>'
                at = match.end()
            found.append(f'<span class="muted">{i:4d}</span>  {done}{html.escape(line[at:])}')
        return f"<pre>{chr(10).join(found)}</pre>"

    def curve(self, width: int, height: int) -> str:
        """A small chart: an area, bars, or a ring."""
        rng, kind = self.rng, self.rng.randrange(3)
        values = [rng.uniform(0.1, 1) * height for _ in range(rng.randint(6, 24))]
        step = width / len(values)
        if kind == 0:
            points = " ".join(f"{i * step + step / 2:.1f},{height - value:.1f}" for i, value in enumerate(values))
            return (
                f'<svg width={width} height={height}><polyline points="{points} {width},{height} 0,{height}" fill="{self.accent()}44"/>'
                f'<polyline points="{points}" fill=none stroke="{self.accent()}" stroke-width=2 /></svg>'
            )
        if kind == 1:
            boxes = "".join(
                f'<rect x={i * step:.1f} y={height - v:.1f} width={step * 0.7:.1f} height={v:.1f} fill="{self.accent()}"/>'
                for i, v in enumerate(values)
            )
            return f"<svg width={width} height={height}>{boxes}</svg>"
        share = rng.uniform(10, 90)
        ring = f"conic-gradient({self.accent()} {share:.0f}%,{self.accent()} 0 {(share + 100) / 2:.0f}%,{self.look.border} 0)"
        return (
            f'<div style="width:{height}px;height:{height}px;border-radius:50%;'
            f'background:radial-gradient({self.look.surface} 50%,transparent 51%),{ring}"></div>'
        )
