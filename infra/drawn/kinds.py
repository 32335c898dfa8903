"""The kinds of page that training sees: each a function that draws on a page of its own style."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from infra.drawn.charts import bars, curves, pies
from infra.drawn.page import SIDE, Colour, Page, Point, blend, vivid

Photos = Sequence[Image.Image]
Kind = Callable[[Page], None]
KindWithPhoto = Callable[[Page, Photos], None]


def article(page: Page) -> None:
    """Headings and paragraphs in one or two columns."""
    rng, look = page.rng, page.look
    columns, margin = rng.choice((1, 1, 2)), rng.randint(8, 48)
    width = (SIDE - margin * (columns + 1)) / columns
    body = page.font(9, 20)
    for column in range(columns):
        x, y = margin + column * (width + margin), float(rng.randint(4, 30))
        while y < SIDE - 40:
            if rng.random() < 0.6:
                page.text(x, y, page.words(rng.randint(1, 3)), page.font(18, 40), rng.choice((look.ink, look.accents[0])))
                y += 46
            y = page.paragraph(x, y, width, min(SIDE - y, rng.randint(60, 260)), body, spacing=rng.choice((1.2, 1.35, 1.6))) + rng.randint(4, 20)


def code(page: Page) -> None:
    """Source text with highlighting, line numbers and a gutter, as an editor shows it."""
    rng, look = page.rng, page.look
    face = page.mono()
    step = round(1.35 * getattr(face, "size", 11))
    gutter = rng.choice((0, 40))
    page.rect(0, 0, gutter, SIDE, look.pale)
    indent = 0
    for row in range(SIDE // step + 1):
        if gutter:
            page.text(6, row * step, f"{row + 1:>3}", face, look.muted)
        indent = max(0, min(5, indent + rng.choice((-2, -1, 0, 0, 0, 1))))
        x = gutter + 8.0 + 4 * indent * face.getlength("n")
        if rng.random() < 0.06:
            page.rect(gutter, row * step, SIDE, step, look.pale)
        for _ in range(rng.choice((0, 2, 3, 4, 5, 7))):
            token = rng.choice((page.words(1), page.words(1) + rng.choice(("()", ":", ",", ";", " =", " ->", "[0]")), f'"{page.words(2)}"'))
            x += page.text(x, row * step, token, face, rng.choice((look.ink, look.ink, *look.accents))) + face.getlength("n")


def terminal(page: Page) -> None:
    """Rows of fixed pitch: prompts, listings, bars of progress."""
    rng, look = page.rng, page.look
    face = page.mono(9, 15)
    step = round(1.25 * getattr(face, "size", 11))
    for row in range(SIDE // step + 1):
        kind = rng.random()
        if kind < 0.15:
            line = f"user@host:~/{page.words(1)}$ {page.words(3)}"
        elif kind < 0.7:
            line = f"-rw-r--r-- 1 root {rng.randrange(10**7):>9} {rng.randint(1, 28):02d}:{rng.randrange(60):02d} {page.words(1)}.{page.words(1)[:3]}"
        elif kind < 0.8:
            share = rng.randrange(40)
            line = f"[{'#' * share}{'.' * (40 - share)}] {share * 2.5:5.1f} %"
        else:
            line = page.words(rng.randint(2, 12))
        page.text(4, row * step, line, face, look.accents[row % 5] if rng.random() < 0.2 else look.ink)


def window(page: Page) -> None:
    """A desktop with overlapping windows: title bars, buttons, fields, lists, scroll bars."""
    rng, look = page.rng, page.look
    page.rect(0, 0, SIDE, SIDE, rng.choice((look.pale, vivid(rng), blend(vivid(rng), look.paper, 0.6))))
    for _ in range(rng.randint(3, 6)):
        w, h = rng.randint(220, 500), rng.randint(180, 460)
        x, y = rng.randint(-60, SIDE - 160), rng.randint(-20, SIDE - 120)
        page.rect(x + 3, y + 4, w, h, blend(look.ink, look.paper, 0.5), radius=6)
        page.rect(x, y, w, h, look.paper, radius=6)
        page.rect(x, y, w, 28, rng.choice((look.pale, look.accents[1])), radius=6)
        page.text(x + 10, y + 6, page.words(3), page.font(11, 14))
        for i in range(3):
            page.ellipse(x + w - 16 - 18 * i, y + 14, 6, 6, look.accents[i])
        row = y + 40
        while row < y + h - 40:
            choice, face = rng.randrange(5), page.font(11, 14)
            if choice == 0:
                page.rect(x + 12, row, w - 24, 26, look.muted, hollow=True, radius=rng.choice((0, 4)))
                page.text(x + 18, row + 5, page.words(2), face, look.muted)
            elif choice == 1:
                for i in range(rng.randint(1, 3)):
                    page.rect(x + 12 + 90 * i, row, 82, 26, look.accents[i], radius=rng.choice((0, 4, 12)))
                    page.text(x + 20 + 90 * i, row + 5, page.words(1)[:9], face, look.paper)
            elif choice == 2:
                page.rect(x + 12, row + 4, 14, 14, look.ink, hollow=True)
                page.line([(x + 15, row + 11), (x + 18, row + 15), (x + 24, row + 6)], look.accents[0], 2)
                page.text(x + 34, row + 3, page.words(4), face)
            elif choice == 3:
                page.rect(x + 12, row + 10, w - 24, 5, look.muted, radius=2)
                page.rect(x + 12, row + 10, rng.randrange(w - 24), 5, look.accents[2], radius=2)
            else:
                page.paragraph(x + 12, row, w - 40, 32, face, spacing=1.2)
            row += 36
        page.rect(x + w - 10, y + 30, 8, h - 34, look.pale)
        page.rect(x + w - 10, y + 30 + rng.randrange(h // 2), 8, h // 4, look.muted, radius=3)


def table(page: Page) -> None:
    """A spreadsheet: rules, numbers flush right, shaded rows."""
    rng, look = page.rng, page.look
    face = page.font(10, 15)
    step, x = rng.randint(18, 30), 0
    shaded, ruled = rng.random() < 0.5, rng.random() < 0.7
    for row in range(0, SIDE // step + 1, 2 if shaded else SIDE):
        page.rect(0, row * step, SIDE, step, look.pale)
    while x < SIDE:
        w, numeric = rng.randint(50, 130), rng.random() < 0.6
        for row in range(SIDE // step + 1):
            content = page.words(1)[: w // 8] if row == 0 or not numeric else f"{rng.gauss(0, 10 ** rng.randint(0, 3)):.2f}"
            place = x + w - 5 - face.getlength(content) if numeric else x + 5
            page.text(place, row * step + 3, content, face, look.accents[0] if content.startswith("-") else look.ink)
        if ruled:
            page.line([(x + w, 0), (x + w, SIDE)], look.muted)
        x += w
    for row in range(SIDE // step + 1 if ruled else 2):
        page.line([(0, row * step), (SIDE, row * step)], look.muted)


def diagram(page: Page) -> None:
    """Boxes, rings and diamonds joined by arrows."""
    rng, look = page.rng, page.look
    pitch = rng.choice((103, 128))
    places = [(x + pitch // 2, y + pitch // 2) for x in range(0, SIDE - pitch // 2, pitch) for y in range(0, SIDE - pitch // 2, pitch)]
    places = [place for place in places if rng.random() < 0.75] or places
    for _ in range(len(places)):
        (x, y), (u, v) = rng.choice(places), rng.choice(places)
        if (x, y) == (u, v):
            continue
        corner = [(x, y), (u, y), (u, v)] if rng.random() < 0.5 else [(x, y), (u, v)]
        page.line(corner, look.muted, rng.choice((1, 1, 2)))
        angle = math.atan2(v - corner[-2][1], u - corner[-2][0])
        tip = (u - 45 * math.cos(angle), v - 45 * math.sin(angle))
        page.polygon([tip, *((tip[0] - 10 * math.cos(angle + a), tip[1] - 10 * math.sin(angle + a)) for a in (0.4, -0.4))], look.muted)
    face, solid = page.font(10, 14), rng.random() < 0.5
    for i, (x, y) in enumerate(places):
        colour, shape, w = look.accents[i % rng.randint(1, 5)], rng.randrange(3), 45
        fill = colour if solid else look.paper
        if shape == 0:
            page.rect(x - w, y - 20, 2 * w, 40, fill, radius=6)
            page.rect(x - w, y - 20, 2 * w, 40, colour, hollow=True, width=2, radius=6)
        elif shape == 1:
            page.ellipse(x, y, w, 26, fill)
            page.ellipse(x, y, w, 26, colour, hollow=True, width=2)
        else:
            page.polygon([(x - w, y), (x, y - 30), (x + w, y), (x, y + 30)], colour)
        page.text(x - 32, y - 8, page.words(1)[:9], face, look.ink)


def line_art(page: Page) -> None:
    """Pen strokes: wandering lines, spirals, hatching, outlines."""
    rng, look = page.rng, page.look
    for _ in range(rng.randint(6, 40)):
        x, y, angle, bend = rng.uniform(0, SIDE), rng.uniform(0, SIDE), rng.uniform(0, 7), rng.gauss(0, 0.05)
        width, colour, points = rng.randint(1, 4), look.ink if rng.random() < 0.8 else look.accents[0], []
        for _ in range(rng.randint(10, 120)):
            points.append((x, y))
            angle += bend + rng.gauss(0, 0.08)
            x, y = x + 5 * math.cos(angle), y + 5 * math.sin(angle)
        page.line(points, colour, width)
    for _ in range(rng.randint(0, 5)):
        x, y, size, pitch = rng.randint(0, SIDE), rng.randint(0, SIDE), rng.randint(30, 150), rng.randint(3, 9)
        for offset in range(0, size, pitch):
            page.line([(x + offset, y), (x + offset - size // 3, y + size)], look.ink)


def pixel_art(page: Page) -> None:
    """Sprites and tiles of a few colours, enlarged without smoothing, dithered in places."""
    rng = page.rng
    scale = rng.choice((2, 4, 8, 16))
    n = SIDE // scale
    palette = np.array([(0, 0, 0), (255, 255, 255), *(vivid(rng) for _ in range(rng.randint(3, 12)))], np.uint8)
    grid = np.full((n, n), rng.randrange(len(palette)))
    for _ in range(max(8, 160 // scale)):
        h, w = rng.randint(1, max(2, n // 4)), rng.randint(1, max(2, n // 4))
        y, x, colour = rng.randrange(n), rng.randrange(n), rng.randrange(len(palette))
        if rng.random() < 0.35:
            part = grid[y : y + h, x : x + w]
            part[np.indices(part.shape).sum(0) % 2 == 0] = colour
        else:
            grid[y : y + h, x : x + w] = colour
    for _ in range(rng.randint(0, 8)):
        sprite = np.array([[rng.random() < 0.5 for _ in range(6)] for _ in range(12)])
        sprite = np.concatenate((sprite, sprite[:, ::-1]), 1)
        y, x = rng.randrange(max(1, n - 12)), rng.randrange(max(1, n - 12))
        part = grid[y : y + 12, x : x + 12]
        part[sprite[: part.shape[0], : part.shape[1]]] = rng.randrange(len(palette))
    page.image.paste(Image.fromarray(palette[grid].repeat(scale, 0).repeat(scale, 1)))


def flat_scene(page: Page) -> None:
    """A flat cartoon: hills, sun, trees, houses in plain colours, outlined or not."""
    rng, look = page.rng, page.look
    outlined = rng.random() < 0.5
    page.rect(0, 0, SIDE, SIDE, blend((255, 255, 255), vivid(rng), 0.6))
    page.ellipse(rng.randint(50, 460), rng.randint(40, 160), 40, 40, vivid(rng))
    for layer in range(rng.randint(2, 4)):
        level, wave, phase = 180 + 90 * layer, rng.uniform(60, 200), rng.uniform(0, 6)
        ridge: list[Point] = [(x, level + 30 * math.sin(x / wave + phase)) for x in range(-8, SIDE + 16, 8)]
        page.polygon([*ridge, (SIDE + 8, SIDE + 8), (-8, SIDE + 8)], vivid(rng))
        if outlined:
            page.line(ridge, look.ink, 3)
        for _ in range(rng.randint(1, 6)):
            x, y = ridge[rng.randrange(len(ridge))]
            size, colour = rng.randint(15, 60), vivid(rng)
            if rng.random() < 0.5:
                page.rect(x - 3, y - size, 6, size, (110, 70, 30))
                page.ellipse(x, y - size, size * 0.5, size * 0.6, colour)
            else:
                page.rect(x, y - size, size, size, colour)
                page.polygon([(x - 6, y - size), (x + size + 6, y - size), (x + size / 2, y - 1.6 * size)], vivid(rng))
                page.rect(x + size * 0.3, y - size * 0.6, size * 0.25, size * 0.25, look.paper)


def gradient(page: Page) -> None:
    """Smooth ramps, straight or round, of two to four colours, some in bands, with a few shapes on top."""
    rng = page.rng
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    angle = rng.uniform(0, 2 * math.pi)
    if rng.random() < 0.5:
        place = rows * math.sin(angle) + columns * math.cos(angle)
    else:
        place = np.hypot(rows - rng.random(), columns - rng.random())
    place = (place - place.min()) / (place.max() - place.min())
    if rng.random() < 0.25:
        place = np.floor(place * rng.randint(5, 40)) / 40
    stops = [vivid(rng) for _ in range(rng.randint(2, 4))]
    at = np.linspace(0, 1, len(stops))
    ramp = np.stack([np.interp(place, at, [stop[i] for stop in stops]) for i in range(3)], -1)
    page.image.paste(Image.fromarray(ramp.round().astype(np.uint8)))
    for i in range(rng.randint(0, 6)):
        page.ellipse(rng.randrange(SIDE), rng.randrange(SIDE), rng.randint(10, 90), rng.randint(10, 90), page.look.accents[i % 5])
    if rng.random() < 0.5:
        page.text(rng.randint(10, 200), rng.randint(10, 440), page.words(2), page.font(24, 60), (255, 255, 255))


def paste_photo(page: Page, photos: Photos, box: tuple[int, int, int, int]) -> None:
    """Fill `x, y, w, h` with a random part of one of the photographs, scaled down by at most three."""
    x, y, w, h = box
    rng = page.rng
    photo = rng.choice(photos)
    scale = min(rng.uniform(1, 3), photo.width / w, photo.height / h)
    u, v = rng.uniform(0, photo.width - w * scale), rng.uniform(0, photo.height - h * scale)
    part = photo.resize((w, h), Image.Resampling.LANCZOS, box=(u, v, u + w * scale, v + h * scale))
    page.image.paste(part, (x, y))


def web_page(page: Page, photos: Photos) -> None:
    """A web page: bar, links, a photograph or several, captions, text around them."""
    rng, look = page.rng, page.look
    page.rect(0, 0, SIDE, 40, rng.choice((look.pale, look.accents[0])))
    for i in range(5):
        page.text(12 + 95 * i, 12, page.words(1)[:10], page.font(12, 15))
    y = 52
    while y < SIDE - 60:
        w, h = rng.randint(120, 320), rng.randint(90, 220)
        left = rng.random() < 0.5
        x = 12 if left else SIDE - 12 - w
        paste_photo(page, photos, (x, y, w, h))
        if rng.random() < 0.3:
            page.text(x + 8, y + h - 30, page.words(2), page.font(14, 22), (255, 255, 255))
        page.paragraph(x + w + 12 if left else 12, y, SIDE - w - 40, h, page.font(11, 16))
        y += h + 16


def slide_with_photo(page: Page, photos: Photos) -> None:
    """A photograph with panels, arrows and labels over it, as annotated or presented."""
    rng, look = page.rng, page.look
    inset = rng.choice((0, 0, 20, 60))
    paste_photo(page, photos, (inset, inset, SIDE - 2 * inset, SIDE - 2 * inset))
    for i in range(rng.randint(1, 5)):
        x, y, w = rng.randint(0, 330), rng.randint(0, 430), rng.randint(90, 240)
        colour: Colour = look.accents[i % 5]
        if rng.random() < 0.6:
            page.rect(x, y, w, 60, look.paper, radius=rng.choice((0, 8)))
            page.paragraph(x + 8, y + 6, w - 16, 50, page.font(11, 16))
        else:
            page.rect(x, y, w, w // 2, colour, hollow=True, width=3)
            page.text(x, y - 22, page.words(2), page.font(14, 20), colour)


PLAIN: tuple[Kind, ...] = (article, code, terminal, window, table, bars, curves, pies, diagram, line_art, pixel_art, flat_scene, gradient)
WITH_PHOTO: tuple[KindWithPhoto, ...] = (web_page, slide_with_photo)
