"""Screenshots of user interfaces: pages of HTML, each of a kind and a look by chance, as a browser shows them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from PIL import Image

from infra.kinds import browser
from infra.kinds.theme import Look, Parts, css, look
from infra.kinds.words import words

_BATCH = 8
"""Frames of one start of the browser."""

_SIZES = ((768, 512), (768, 512), (800, 600), (720, 540), (640, 480), (854, 480), (512, 640))
_HELD_ALONE_SHARE = 1 / 3

Page = Callable[[Parts, random.Random], str]


def dashboard(p: Parts, rng: random.Random) -> str:
    """Tiles with figures above charts and a list."""
    tiles = "".join(
        f'<div class="card grow"><div class="muted">{p.title()}</div><h2>{p.number()}</h2>{p.curve(120, 26) if rng.random() < 0.4 else ""}</div>'
        for _ in range(rng.randint(3, 5))
    )
    charts = "".join(f'<div class="card grow"><b>{p.title()}</b><br>{p.curve(rng.randint(160, 300), 130)}</div>' for _ in range(rng.randint(1, 3)))
    rows = "".join(f"<tr><td>{p.name()}<td>{p.title()}<td>{p.number()}</tr>" for _ in range(9))
    inside = (
        f'<div class="col grow" style="padding:10px"><div class=row>{tiles}</div><div class=row>{charts}</div><div '
        f"class=card><table>{rows}</table></div></div>"
    )
    return f'{p.top()}<div class="row grow" style="align-items:stretch">{p.menu(rng.randint(5, 11), rng.randint(110, 180))}{inside}</div>'


def table(p: Parts, rng: random.Random) -> str:
    """Rows and columns of data, with states in colours."""
    columns = rng.randint(4, 8)
    head = "".join(f"<th>{p.title(1, 1)}" for _ in range(columns))
    makers = [rng.choice((p.name, p.number, p.when, lambda: p.title(1, 2), p.number)) for _ in range(columns - 1)]
    striped = rng.random() < 0.5
    body = "".join(
        f"<tr{' class=on' if striped and i % 2 else ''}>{''.join(f'<td>{make()}' for make in makers)}"
        f'<td><span style="background:{p.accent()};color:#fff;border-radius:9px;padding:1px 8px">{p.title(1, 1)}</span>'
        for i in range(26)
    )
    return f"{p.top()}<div class=bar>{p.button()} {p.button()} {p.button()}</div><div class=grow><table><tr>{head}</tr>{body}</table></div>"


def settings(p: Parts, rng: random.Random) -> str:
    """A form: fields, switches, sliders, choices."""
    rows = []
    for _ in range(rng.randint(7, 11)):
        kind = rng.randrange(5)
        if kind == 0:
            control = f'<span class=field style="width:220px">{p.title(1, 4)}</span>'
        elif kind == 1:
            fill, side = (p.accent(), "flex-end") if rng.random() < 0.5 else (p.look.border, "flex-start")
            control = f'<span class=row style="width:38px;height:20px;border-radius:10px;padding:2px;background:{fill};justify-content:{side}">'
            control += '<span style="width:16px;height:16px;border-radius:8px;background:#fff"></span></span>'
        elif kind == 2:
            control = f'<input type=range value={rng.randrange(100)} style="accent-color:{p.accent()}">'
        elif kind == 3:
            control = f"<select class=btn><option>{p.title()}</select>"
        else:
            control = "".join(f"<label><input type=radio name={rng.random()} {'checked' * (i == 1)}>{p.title(1, 1)}</label> " for i in range(3))
        rows.append(
            f'<div class=row style="padding:5px 0"><div class=grow><b>{p.title(1, 3)}</b><div class=muted>{p.text()[:80]}</div></div>{control}</div>'
        )
    inside = f'<div class="grow card" style="margin:12px"><h2>{p.title()}</h2>{"".join(rows)}<div class=row>{p.button()}{p.button()}</div></div>'
    return f'<div class="row grow" style="align-items:stretch">{p.menu(rng.randint(6, 14), rng.randint(130, 200))}{inside}</div>'


def editor(p: Parts, rng: random.Random) -> str:
    """Source code between a tree of files and a terminal."""
    tabs = "".join(f'<span class="btn{" on" if i == 1 else ""}">{p.title(1, 1).lower()}.py</span>' for i in range(rng.randint(2, 5)))
    tree = p.menu(rng.randint(9, 18), rng.randint(110, 170)) if rng.random() < 0.75 else ""
    below = f'<div class=card style="height:110px">{p.code(6)}</div>' if rng.random() < 0.4 else ""
    code = f'<div class="col grow"><div class="bar row">{tabs}</div><div class=grow style="overflow:hidden">{p.code(60)}</div>{below}</div>'
    foot = f'<div class="row" style="background:{p.accent()};color:#fff;padding:2px 8px">{p.title()} <span class=grow></span>{p.title()}</div>'
    return f'<div class="row grow" style="align-items:stretch">{tree}{code}</div>{foot}'


def conversation(p: Parts, rng: random.Random) -> str:
    """Messages from two sides beside a list of people."""
    people = "".join(
        f'<div class="row{" on" if i == 2 else ""}" style="padding:6px">{p.face()}<div class=grow '
        f'style="overflow:hidden;white-space:nowrap"><b>{p.name()}</b>'
        f"<div class=muted>{p.text()[:30]}</div></div><span class=muted>{p.when()}</span></div>"
        for i in range(11)
    )
    said = []
    for _ in range(10):
        mine = rng.random() < 0.45
        text = p.text()[: rng.randint(12, 240)]
        colours = f"background:{p.look.accents[0]};color:#fff;margin-left:auto" if mine else f"background:{p.look.surface}"
        said.append(
            f'<div class=row>{"" if mine else p.face()}<div style="{colours};padding:7px 11px;border-radius:12px;max-width:68%">{text}</div></div>'
        )
    field = f'<div class="row bar">{p.icon()}<span class="field grow muted">{p.title()}</span>{p.button()}</div>'
    return (
        f'<div class="row grow" style="align-items:stretch"><div class="side col" style="width:{rng.randint(170, 240)}'
        f'px;overflow:hidden">{people}</div>'
        f'<div class="col grow"><div class="bar row">{p.face()}<b>{p.name()}</b></div><div class="col grow" '
        f'style="padding:10px;overflow:hidden">{"".join(said)}'
        f"</div>{field}</div></div>"
    )


def mail(p: Parts, rng: random.Random) -> str:
    """A list of letters and the one that is read."""
    rows = "".join(
        f'<div class="{"on" if i == 1 else ""}" style="padding:7px;border-bottom:1px solid {p.look.border};white-space:nowrap;overflow:hidden">'
        f"<div class=row><b class=grow>{p.name()}</b><span class=muted>{p.when()}</span></div>{p.title(2, 6)}<div "
        f"class=muted>{p.text()[:60]}</div></div>"
        for i in range(10)
    )
    letter = "".join(f"<p>{p.text(rng.randint(60, 400))}</p>" for _ in range(5))
    read = (
        f'<div class=grow style="padding:14px;overflow:hidden"><h2>{p.title(3, 7)}</h2><div class=row>{p.face(36)}<div>'
        f"{p.name()}</div></div>{letter}</div>"
    )
    middle = f'<div style="width:{rng.randint(200, 280)}px;overflow:hidden;border-right:1px solid {p.look.border}">{rows}</div>'
    return f'{p.top()}<div class="row grow" style="align-items:stretch;gap:0">{p.menu(8, 110)}{middle}{read}</div>'


def article(p: Parts, rng: random.Random) -> str:
    """A page to read in a browser's window: address, heading, pictures, columns."""
    address = (
        f'<div class="bar row">{p.icon()}{p.icon()}<span class="field grow">https://{p.name().lower().replace(" ", ".")}'
        f"/{p.title(1, 1).lower()}</span></div>"
    )
    picture = p.picture(f"height:{rng.randint(80, 180)}px;margin:8px 0") if rng.random() < 0.7 else ""
    aside = (
        f'<div class=card style="width:190px"><b>{p.title()}</b>{"".join(f"<p>{p.title(3, 8)}" for _ in range(7))}</div>'
        if rng.random() < 0.6
        else ""
    )
    text = "".join(f"{f'<h3>{p.title(2, 5)}</h3>' if rng.random() < 0.3 else ''}<p>{p.text(300)}" for _ in range(5))
    size, columns = rng.choice((1.0, 1.1, 1.25)), rng.choice((1, 1, 2))
    inside = (
        f'<div class=grow style="font-size:{size}em;line-height:{rng.uniform(1.25, 1.7):.2f}"><h1>{p.title(3, 8)}</h1>'
        f"<div class=muted>{p.name()}, {p.when()}</div>"
    )
    return (
        f'{address}<div class="row grow" style="align-items:flex-start;padding:12px 24px;gap:20px">{inside}{picture}'
        f'<div style="columns:{columns}">{text}</div></div>{aside}</div>'
    )


def shop(p: Parts, rng: random.Random) -> str:
    """Things for sale in a grid."""
    cards = "".join(
        f'<div class=card style="padding:0">{p.picture(f"height:{110}px")}<div style="padding:8px"><b>{p.title(2, 3)}</b>'
        f'<div class=muted>{p.text()[:50]}</div><span style="color:{p.accent()};font-size:1.2em">${rng.randint(3, 999)}'
        f".{rng.choice(('99', '00', '50'))}</span></div></div>"
        for _ in range(12)
    )
    return (
        f'{p.top()}<div class=grow style="display:grid;grid-template-columns:repeat({rng.randint(3, 5)},1fr);gap:10px;padding:10px;'
        f'align-content:start">{cards}</div>'
    )


def files(p: Parts, rng: random.Random) -> str:
    """Folders and files with their signs, as a list or a grid."""
    if rng.random() < 0.5:
        rows = "".join(f"<tr><td>{p.icon()} {p.title(1, 3)}<td>{p.when()}<td>{p.number()}</tr>" for _ in range(24))
        inside = f"<table>{rows}</table>"
    else:
        tiles = "".join(
            f'<div style="text-align:center;overflow:hidden"><div style="background:{p.accent()};width:52px;height:42px;'
            f'margin:auto;border-radius:6px">'
            f"{p.icon(40)}</div>{p.title(1, 2)}</div>"
            for _ in range(40)
        )
        inside = f'<div style="display:grid;grid-template-columns:repeat(6,1fr);gap:14px;padding:10px">{tiles}</div>'
    return f'{p.top()}<div class="row grow" style="align-items:stretch">{p.menu(10, 140)}<div class=grow style="overflow:hidden">{inside}</div></div>'


def dialog(p: Parts, rng: random.Random) -> str:
    """A question in the middle of the screen, over a table or a picture."""
    fields = "".join(
        f"<div><div class=muted>{p.title(1, 2)}</div><span class=field style='display:block'>{p.title(1, 3)}</span></div>" for _ in range(3)
    )
    at = "position:fixed;left:50%;top:50%;transform:translate(-50%,-50%)"
    box = f'<div class="card col" style="{at};width:{rng.randint(280, 420)}px"><h2>{p.title(2, 4)}</h2><div>{p.text(120)[:200]}</div>{fields}'
    below = (
        p.picture("position:fixed;inset:0") if rng.random() < 0.4 else table(p, rng) + '<div style="position:fixed;inset:0;background:#0008"></div>'
    )
    return f"{below}{box}<div class=row><span class=grow></span>{p.button()}{p.button()}</div></div>"


def terminal(p: Parts, rng: random.Random) -> str:
    """What commands said, in letters of one width."""
    said = "".join(
        f'<div><span style="color:{p.look.accents[2]}">{p.name().split()[0].lower()}@{p.name().split()[1].lower()}'
        f"</span>:~$ {p.title(1, 3).lower()} --{p.title(1, 1).lower()}</div>"
        f'<div style="white-space:nowrap">{"<br>".join(p.text() for _ in range(rng.randint(1, 6)))}</div>'
        for _ in range(12)
    )
    head = (
        f'<div class="bar row"><span class=grow style="text-align:center">{p.title()}</span>{p.icon()}{p.icon()}</div>' if rng.random() < 0.7 else ""
    )
    back, ink = rng.choice((("#000", "#ddd"), ("#1e1e1e", "#8c8"), ("#300a24", "#eee"), ("#fdf6e3", "#586e75"), (p.look.back, p.look.ink)))
    return f"{head}<pre class=grow style='background:{back};color:{ink};padding:6px'>{said}</pre>"


def board(p: Parts, rng: random.Random) -> str:
    """Cards in columns."""
    columns = ""
    for _ in range(rng.randint(3, 5)):
        columns += f'<div class="col grow"><b>{p.title(1, 2)}</b>'
        for _ in range(rng.randint(2, 6)):
            columns += f'<div class=card><div style="background:{p.accent()};height:5px;width:40px;border-radius:3px"></div>{p.title(3, 7)}'
            columns += f"<div class=row>{p.face(20)}<span class=muted>{p.when()}</span></div></div>"
        columns += "</div>"
    return f'{p.top()}<div class="row grow" style="align-items:flex-start;padding:10px">{columns}</div>'


def spreadsheet(p: Parts, rng: random.Random) -> str:
    """Cells with figures, lettered and numbered."""
    line = f"border:1px solid {p.look.border}"
    head = "".join(f'<th class=on style="{line}">{chr(65 + i)}' for i in range(9))
    rows = "".join(
        f'<tr><th class=on style="{line}">{i + 1}'
        + "".join(f'<td style="{line};text-align:right">{p.number() if rng.random() < 0.7 else ""}' for _ in range(9))
        for i in range(28)
    )
    return f'{p.top()}<div class="bar row">{"".join(p.icon() for _ in range(18))}</div><table><tr><th>{head}{rows}</table>'


def player(p: Parts, rng: random.Random) -> str:
    """A list of songs under a cover, and what plays them."""
    songs = "".join(f"<tr><td>{i + 1}<td>{p.title(1, 4)}<td>{p.name()}<td>{rng.randint(1, 9)}:{rng.randrange(60):02d}</tr>" for i in range(14))
    head = f'<div class=row style="padding:14px">{p.picture("width:130px;height:130px;flex:none")}<div><h1>{p.title(1, 3)}</h1>{p.name()}</div></div>'
    foot = (
        f'<div class="bar row">{p.icon(24)}{p.icon(30)}{p.icon(24)}<div class=grow style="height:4px;'
        f'background:linear-gradient(90deg,{p.accent()} 40%,{p.look.border} 0)"></div></div>'
    )
    return f'{head}<div class=grow style="overflow:hidden"><table>{songs}</table></div>{foot}'


SHARED: tuple[Page, ...] = (dashboard, table, settings, editor, conversation, mail, article, shop, files, dialog, terminal)
HELD_ALONE: tuple[Page, ...] = (board, spreadsheet, player)
"""Kinds of page that only held-out pictures have: a third of them."""


def page(number: int, *, seed: int, held: bool = False) -> tuple[str, str]:
    """Kind and HTML of page `number`.

    Args:
        number: 0 and up.
        seed: Of the set.
        held: For the held-out set: other words, and kinds of page that the other set does not have.
    """
    rng = random.Random(f"screens {held} {seed} {number}")
    kinds = HELD_ALONE if held and rng.random() < _HELD_ALONE_SHARE else SHARED
    kind, of = kinds[number % len(kinds)], look(rng)
    return kind.__name__, _whole(kind(Parts(rng, of, words(held)), rng), of)


def _whole(body: str, of: Look) -> str:
    scheme = "dark" if of.dark else "light"
    return f"<!doctype html><html style='color-scheme:{scheme}'><meta charset=utf-8><style>{css(of)}</style><body>{body}</body></html>"


def screens(count: int, *, seed: int, held: bool = False) -> Iterator[tuple[str, Image.Image]]:
    """Kind and RGB picture of pages, some of one size after each other; sizes, pixel densities and smoothing of text vary.

    Raises:
        RuntimeError: There is no browser, or it failed.
    """
    for first in range(0, count, _BATCH):
        rng = random.Random(f"screens {held} {seed} batch {first}")
        width, height = rng.choice(_SIZES)
        scale = rng.choice((1.0, 1.0, 1.0, 1.25))
        made = [page(number, seed=seed, held=held) for number in range(first, min(first + _BATCH, count))]
        shown = browser.frames([text for _, text in made], width, height, scale=scale, subpixel=rng.random() < 0.3)
        yield from zip((name for name, _ in made), shown, strict=True)
