"""What stands on printed sheets: HTML with columns, headings, formulas, tables, figures, rules and forms, all by chance."""

from __future__ import annotations

import html
import random

from infra.kinds.words import Words

_GREEK = "αβγδεζηθκλμνξπρστφχψω"
_OPERATORS = "+\u2212=≤≥∈→⊂\u00d7·≈"


class Sheet:
    """Makes one sheet; each public method is a kind.

    Args:
        rng: Decides everything.
        said: What is written.
    """

    def __init__(self, rng: random.Random, said: Words) -> None:
        self.rng, self.said = rng, said

    # Parts -----------------------------------------------------------------------------------------------------------------------------------------

    def _title(self, low: int = 2, high: int = 6) -> str:
        return html.escape(self.said.title(self.rng, low, high))

    def _text(self, least: int = 250) -> str:
        return html.escape(self.said.paragraph(self.rng, least))

    def _paragraphs(self, count: int, *, formulas: float = 0.0) -> str:
        found = []
        for _ in range(count):
            if self.rng.random() < 0.25:
                found.append(f"<h3>{self.rng.randint(1, 9)}.{self.rng.randint(1, 9)} {self._title()}</h3>")
            found.append(f"<p>{self._text(self.rng.randint(150, 600))}")
            if self.rng.random() < formulas:
                found.append(f"<div class=eq><span></span><math display=block>{self._sum()}</math><span>({self.rng.randint(1, 40)})</span></div>")
        return "".join(found)

    def _symbol(self) -> str:
        rng = self.rng
        base = f"<mi>{rng.choice(_GREEK + 'abcdfghknpqrstuvxyz')}</mi>"
        index = f"<mn>{rng.randint(0, 9)}</mn>" if rng.random() < 0.5 else f"<mi>{rng.choice('ijkmn')}</mi>"
        return rng.choice((base, base, f"<msub>{base}{index}</msub>", f"<msup>{base}{index}</msup>"))

    def _term(self, depth: int) -> str:
        rng, kind = self.rng, self.rng.randrange(6 if depth else 1)
        if kind == 1:
            return f"<mfrac><mrow>{self._sum(depth - 1)}</mrow><mrow>{self._sum(depth - 1)}</mrow></mfrac>"
        if kind == 2:
            return f"<msqrt>{self._sum(depth - 1)}</msqrt>"
        if kind == 3:
            sign = rng.choice("∑∏∫")
            return f"<munderover><mo>{sign}</mo><mrow>{self._symbol()}<mo>=</mo><mn>0</mn></mrow><mi>∞</mi></munderover>{self._symbol()}"
        if kind == 4:
            return f"<mo>(</mo>{self._sum(depth - 1)}<mo>)</mo>"
        return self._symbol()

    def _sum(self, depth: int = 2) -> str:
        found = self._term(depth)
        for _ in range(self.rng.randint(1, 3)):
            found += f"<mo>{self.rng.choice(_OPERATORS)}</mo>{self._term(depth)}"
        return found

    def _number(self) -> str:
        return self.rng.choice((f"{self.rng.lognormvariate(3, 3):,.2f}", f"{self.rng.randint(0, 9999)}", f"{self.rng.random():.3f}"))

    def _table(self, rows: int = 0, columns: int = 0) -> str:
        rng = self.rng
        rows, columns = rows or rng.randint(4, 12), columns or rng.randint(3, 7)
        head = "".join(f"<th>{self._title(1, 2)}" for _ in range(columns))
        body = "".join(f"<tr><td>{self._title(1, 3)}" + "".join(f"<td>{self._number()}" for _ in range(columns - 1)) for _ in range(rows))
        return f"<table class={rng.choice(('ruled', 'lines'))}><tr>{head}{body}</table>"

    def _figure(self) -> str:
        rng, parts = self.rng, []
        for _ in range(rng.randint(2, 4)):
            y, points = 60.0, []
            for x in range(10, 250, 10):
                y = min(115, max(5, y + rng.gauss(0, 12)))
                points.append(f"{x},{y:.1f}")
            dash = rng.choice(("", "4 3", "1 3"))
            parts.append(
                f'<polyline points="{" ".join(points)}" fill=none stroke=black stroke-width={rng.uniform(0.7, 2):.1f} stroke-dasharray="{dash}"/>'
            )
        ticks = "".join(f'<text x={x} y=134 font-size=9>{x // 10}</text><path d="M{x} 120v4" stroke=black />' for x in range(10, 260, 40))
        frame = "<rect x=10 y=5 width=240 height=115 fill=none stroke=black />"
        return (
            f'<figure><svg viewBox="0 0 260 140" width="{rng.randint(55, 95)}%">{frame}{"".join(parts)}{ticks}</svg><br>'
            f"<small>Fig. {rng.randint(1, 20)}. {self._title(5, 12)}</small></figure>"
        )

    def _columns(self, count: int, inside: str) -> str:
        rule = "column-rule:.5px solid #000;" if self.rng.random() < 0.3 else ""
        return f'<div style="columns:{count};column-gap:1.6em;{rule}">{inside}</div>'

    # Kinds -----------------------------------------------------------------------------------------------------------------------------------------

    def article(self) -> str:
        """A paper: title, authors, abstract, columns with formulas, a table and a figure."""
        inside = (
            self._paragraphs(4, formulas=0.5)
            + self._figure()
            + self._paragraphs(3, formulas=0.4)
            + self._table(6, 4)
            + self._paragraphs(7, formulas=0.4)
        )
        authors = ", ".join(self.said.name(self.rng) for _ in range(self.rng.randint(1, 4)))
        head = (
            f'<h1 style="text-align:center">{self._title(4, 9)}</h1><p style="text-align:center">{authors}<p '
            f'style="margin:0 8%"><b>Abstract.</b> {self._text(400)}'
        )
        return (head if self.rng.random() < 0.5 else "") + self._columns(self.rng.choice((1, 2, 2)), inside)

    def letter(self) -> str:
        """Address, date, a few paragraphs, a name."""
        lines = "<br>".join(self._title(1, 3) for _ in range(4))
        date = f"<p style='text-align:right'>{self._title(1, 1)}, {self.rng.randint(1, 28)}.{self.rng.randint(1, 12)}.{self.rng.randint(1950, 2026)}"
        text = "".join(f"<p>{self._text(self.rng.randint(100, 500))}" for _ in range(self.rng.randint(2, 5)))
        return (
            f"<h2>{self.said.name(self.rng)}</h2><p>{lines}{date}<p><b>{self._title(3, 7)}</b>{text}<p "
            f"style='margin-top:3em'>{self.said.name(self.rng)}"
        )

    def report(self) -> str:
        """Tables between short paragraphs."""
        return f"<h2>{self._title()}</h2>" + "".join(self._paragraphs(1) + self._table() for _ in range(4))

    def textbook(self) -> str:
        """Statements, proofs and many formulas."""
        found = ""
        for i in range(6):
            found += (
                f"<p><b>{self.rng.choice(('Theorem', 'Lemma', 'Definition', 'Example'))} {i + 1}.</b> <i>{self._text(120)}</i> "
                f"<math>{self._sum(1)}</math>."
            )
            found += f"<div class=eq><span></span><math display=block>{self._sum()}</math><span>({i})</span></div><p>{self._text(200)} ∎"
        return found

    def manual(self) -> str:
        """Explanations and code."""
        parts = []
        for _ in range(4):
            parts.append(
                f"<h3>{self._title()}</h3><p>{self._text(200)}<pre>"
                f"{html.escape(chr(10).join(self.said.lines(self.rng, self.rng.randint(5, 12))))}</pre>"
            )
        return "".join(parts)

    def form(self) -> str:
        """Fields to fill in, boxes to tick, small print; some are filled in."""
        rows = []
        for i in range(11):
            cells = "".join(
                f'<div style="flex:{self.rng.randint(1, 4)}"><small>{i + 1}{chr(97 + k)} {self._title(1, 4)}</small><div class=box>'
                f"{self.said.name(self.rng) if self.rng.random() < 0.4 else ''}</div></div>"
                for k in range(self.rng.randint(1, 4))
            )
            rows.append(f'<div style="display:flex;gap:8px;margin-bottom:5px">{cells}</div>')
        ticks = "".join(f"<div>{self.rng.choice('☐☑☒')} {self._title(3, 8)}</div>" for _ in range(6))
        return f"<h2>{self._title()}</h2>{''.join(rows)}{ticks}<p style='font-size:.7em'>{self._text(500)}"

    def invoice(self) -> str:
        """A head in colours, positions, a sum."""
        colour = f"hsl({self.rng.randrange(360)} 60% 35%)"
        head = (
            f"<h1 style='background:{colour};color:#fff;padding:8px'>{self._title(1, 2)}</h1><p>{self.said.name(self.rng)}"
            f"<br>{self._title()}<br>No. {self._number()}"
        )
        total = f"<h2 style='text-align:right;color:{colour}'>{self._number()}</h2>"
        return f"{head}{self._table(self.rng.randint(5, 16), 5)}{total}<p>{self._text(150)}<p style='font-size:.75em'>{self._text(300)}"

    def newspaper(self) -> str:
        """A head over many narrow columns, headings among them."""
        inside = "".join(f"<h{self.rng.choice((2, 3))}>{self._title(3, 7)}</h{3}><p>{self._text(500)}<p>{self._text(300)}" for _ in range(9))
        return (
            f"<h1 style='text-align:center;font-size:2.6em;border-bottom:3px double #000'>{self._title(1, 3)}</h1>"
            f"{self._columns(self.rng.choice((3, 4)), inside)}"
        )

    def references(self) -> str:
        """A list of numbered sources."""
        entries = "".join(
            f"<p>[{i}] {self.said.name(self.rng)}, {self.said.name(self.rng)}. {self._title(4, 10)}. <i>{self._title(2, 5)}"
            f"</i> <b>{self.rng.randint(1, 90)}</b>, "
            f"{self.rng.randint(1, 900)}\u2013{self.rng.randint(901, 1800)} ({self.rng.randint(1930, 2026)})."
            for i in range(1, 50)
        )
        return f"<h2>{self._title(1, 2)}</h2><div style='font-size:.9em'>{self._columns(self.rng.choice((1, 2)), entries)}</div>"

    def novel(self) -> str:
        """Running text alone, the first line of a paragraph set in."""
        return "".join(f"<p style='text-indent:1.5em;margin:0'>{self._text(self.rng.randint(60, 700))}" for _ in range(14))

    def dictionary(self) -> str:
        """Headwords in bold, explanations, narrow columns."""
        inside = "".join(
            f"<p style='margin:0'><b>{self._title(1, 1).lower()}</b> <i>{self.rng.choice(('n.', 'v.', 'adj.'))}</i> {self._text(80)}"
            for _ in range(70)
        )
        return f"<div style='font-size:.85em'>{self._columns(3, inside)}</div>"

    def play(self) -> str:
        """Names of those who speak, what they say, and what they do in brackets."""
        people = [self.said.name(self.rng).split()[0].upper() for _ in range(4)]
        return "".join(
            f"<p style='padding-left:3em;text-indent:-3em'><b>{self.rng.choice(people)}.</b> <i>[{self._title(2, 5)}]</i> {self._text(60)}"
            for _ in range(30)
        )

    def exam(self) -> str:
        """Questions with formulas, answers to choose from, lines to write on."""
        found = ""
        for i in range(7):
            choices = "".join(f"<td>{letter}) <math>{self._sum(1)}</math>" for letter in "ABCD")
            found += f"<p><b>{i + 1}.</b> {self._text(80)} <math>{self._sum(1)}</math><table><tr>{choices}</table>"
            found += "<div style='border-bottom:1px dotted #000;height:1.6em'></div>" * self.rng.randrange(3)
        return f"<h2>{self._title()}</h2>{found}"
