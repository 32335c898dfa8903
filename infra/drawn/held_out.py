"""The kinds of page that validation alone sees, with fonts of its own: what a figure on them says is not what training drew by heart."""

from __future__ import annotations

import math

from infra.drawn.kinds import Kind, KindWithPhoto, Photos, paste_photo
from infra.drawn.page import SIDE, Page, blend, vivid


def calendar(page: Page) -> None:
    """A month: a grid of days with numbers, entries and marks."""
    rng, look = page.rng, page.look
    page.text(16, 10, f"{page.words(1).capitalize()} {rng.randint(1990, 2030)}", page.font(24, 32))
    for i in range(42):
        x, y = 8 + 71 * (i % 7), 66 + 73 * (i // 7)
        page.rect(x, y, 70, 72, look.muted, hollow=True)
        page.text(x + 5, y + 4, str(i % 31 + 1), page.font(12, 14), look.accents[0] if i % 7 > 4 else look.ink)
        for row in range(rng.choice((0, 0, 1, 2, 3))):
            page.rect(x + 3, y + 22 + 16 * row, 64, 14, look.accents[row], radius=3)
            page.text(x + 6, y + 22 + 16 * row, page.words(1)[:8], page.font(10, 11), look.paper)


def music(page: Page) -> None:
    """Staves with notes, stems, beams and bar lines."""
    rng, look = page.rng, page.look
    for staff in range(6):
        top = 26 + 82 * staff
        for line in range(5):
            page.line([(14, top + 9 * line), (SIDE - 14, top + 9 * line)], look.ink)
        x, beam = 50, None
        while x < SIDE - 30:
            y = top + 4.5 * rng.randint(-2, 10)
            page.ellipse(x, y, 6, 4.5, look.ink, hollow=rng.random() < 0.25, width=2)
            page.line([(x + 5, y), (x + 5, y - 30)], look.ink)
            if beam and rng.random() < 0.6:
                page.line([beam, (x + 5, y - 30)], look.ink, 4)
                beam = None
            else:
                beam = (x + 5, y - 30)
            x += rng.randint(16, 36)
            if rng.random() < 0.2:
                page.line([(x, top), (x, top + 36)], look.ink)
                x += 16
        page.text(14, top + 44, page.words(9), page.font(10, 13), look.muted)


def street_map(page: Page) -> None:
    """Blocks, roads with casings, water, names along them."""
    rng, look = page.rng, page.look
    page.rect(0, 0, SIDE, SIDE, blend(look.paper, (235, 230, 215), 0.7))
    page.polygon([(rng.randrange(SIDE), rng.randrange(SIDE)) for _ in range(4)], blend(look.accents[0], (255, 255, 255), 0.6))
    for _ in range(rng.randint(40, 90)):
        x, y = rng.randrange(SIDE), rng.randrange(SIDE)
        page.rect(x, y, rng.randint(8, 40), rng.randint(8, 40), blend(look.paper, look.ink, rng.choice((0.1, 0.2))))
    roads = []
    for _ in range(rng.randint(8, 18)):
        x, y, angle = rng.randrange(SIDE), rng.randrange(SIDE), rng.uniform(0, math.pi)
        bend = rng.gauss(0, 0.15)
        points = [(x + 60 * i * math.cos(angle + bend * i), y + 60 * i * math.sin(angle + bend * i)) for i in range(-6, 7)]
        roads.append((points, rng.choice((4, 6, 10)), look.accents[rng.randrange(3)]))
    for extra in (3, 0):
        for points, width, colour in roads:
            page.line(points, look.muted if extra else blend(colour, (255, 255, 255), 0.5), width + extra)
    for _ in range(rng.randint(6, 14)):
        page.text(rng.randrange(430), rng.randrange(490), page.words(2), page.font(10, 15))


def chat(page: Page) -> None:
    """Messages in bubbles left and right, portraits as discs, times."""
    rng, look = page.rng, page.look
    y = 10.0
    while y < SIDE - 40:
        mine, w, rows = rng.random() < 0.5, rng.randint(140, 330), rng.randint(1, 5)
        x, h = (SIDE - w - 14 if mine else 54), 18 + 18 * rows
        page.rect(x, y, w, h, blend(look.accents[0], look.paper, 0.3) if mine else look.pale, radius=8)
        page.paragraph(x + 10, y + 8, w - 20, 18 * rows + 2, page.font(12, 13))
        if not mine:
            page.ellipse(28, y + 18, 16, 16, rng.choice(look.accents))
            page.text(22, y + 10, page.words(1)[0].upper(), page.font(14, 16), look.paper)
        page.text(x + w - 34, y + h + 1, f"{rng.randrange(24):02d}:{rng.randrange(60):02d}", page.font(9, 10), look.muted)
        y += h + 18


def floor_plan(page: Page) -> None:
    """Walls, doors as quarter circles, measures with ticks."""
    rng, look = page.rng, page.look

    def divide(x: int, y: int, w: int, h: int, depth: int) -> None:
        if depth and max(w, h) > 110:
            share = rng.uniform(0.35, 0.65)
            if w > h:
                divide(x, y, int(w * share), h, depth - 1)
                divide(x + int(w * share), y, w - int(w * share), h, depth - 1)
            else:
                divide(x, y, w, int(h * share), depth - 1)
                divide(x, y + int(h * share), w, h - int(h * share), depth - 1)
            return
        page.rect(x, y, w + 4, h + 4, look.ink, hollow=True, width=5)
        page.rect(x + 20, y, 30, 5, look.paper)
        page.line([(x + 20 + 30 * math.cos(a / 10), y + 30 * math.sin(a / 10)) for a in range(17)], look.muted)
        page.text(x + 14, y + h // 2, page.words(1)[:10], page.font(12, 15))
        page.text(x + 14, y + h // 2 + 18, f"{w / 40:.2f} x {h / 40:.2f}", page.font(10, 12), look.muted)

    divide(40, 40, 430, 430, 4)
    for tick in range(40, 471, 43):
        page.line([(tick, 16), (tick, 28)], look.ink)
    page.line([(40, 22), (470, 22)], look.ink)


def blocks(page: Page) -> None:
    """Boxes in isometric view, three flat shades each."""
    rng, look = page.rng, page.look
    for row in range(11):
        for column in range(8):
            height = rng.randint(0, 5) * 12
            x, y, r = 72 * column + (36 if row % 2 else 0), 60 + 42 * row - height, 36
            colour = rng.choice(look.accents)
            page.polygon([(x - r, y), (x, y + r / 2), (x, y + r / 2 + height), (x - r, y + height)], blend(colour, (0, 0, 0), 0.35))
            page.polygon([(x + r, y), (x, y + r / 2), (x, y + r / 2 + height), (x + r, y + height)], blend(colour, (0, 0, 0), 0.6))
            page.polygon([(x - r, y), (x, y - r / 2), (x + r, y), (x, y + r / 2)], colour)


def icons(page: Page) -> None:
    """A launcher: rounded squares with signs, names below."""
    rng, look = page.rng, page.look
    page.rect(0, 0, SIDE, SIDE, rng.choice((look.paper, blend(vivid(rng), look.paper, 0.5))))
    for i in range(25):
        x, y = 22 + 98 * (i % 5), 16 + 98 * (i // 5)
        page.rect(x, y, 66, 66, vivid(rng), radius=14)
        sign = rng.randrange(4)
        if sign == 0:
            spikes = [(33 - 24 * (k % 2) * 0.5 - 8, math.pi * k / 5) for k in range(10)]
            page.polygon([(x + 33 + size * math.sin(a), y + 33 - size * math.cos(a)) for size, a in spikes], look.paper)
        elif sign == 1:
            page.ellipse(x + 33, y + 33, 20, 20, look.paper, hollow=True, width=6)
        elif sign == 2:
            page.line([(x + 14, y + 46), (x + 28, y + 24), (x + 40, y + 38), (x + 54, y + 16)], look.paper, 5)
        else:
            page.text(x + 18, y + 10, page.words(1)[0].upper(), page.font(38, 44), look.paper)
        page.text(x + 2, y + 70, page.words(1)[:10], page.font(11, 12))


def newspaper(page: Page, photos: Photos) -> None:
    """A front page: masthead, three narrow columns, a photograph in them."""
    rng, look = page.rng, page.look
    page.text(60, 4, page.words(2).title(), page.font(36, 44))
    page.line([(8, 58), (SIDE - 8, 58)], look.ink, 2)
    column, body = rng.randrange(2), page.font(9, 11)
    h = rng.randint(140, 230)
    paste_photo(page, photos, (8 + 168 * column, 70, 328, h))
    for i in range(3):
        top = 70 + (h + 12 if column <= i <= column + 1 else 0)
        page.paragraph(8 + 168 * i, top, 158, SIDE - top - 8, body, spacing=1.15)


def gallery(page: Page, photos: Photos) -> None:
    """Small photographs in a grid with borders, names and a tool bar."""
    rng, look = page.rng, page.look
    page.rect(0, 0, SIDE, 30, look.pale)
    for i in range(8):
        page.ellipse(18 + 30 * i, 15, 8, 8, look.muted, hollow=True, width=2)
    for i in range(12):
        x, y = 10 + 126 * (i % 4), 42 + 156 * (i // 4)
        page.rect(x - 2, y - 2, 118, 118, look.accents[0] if rng.random() < 0.15 else look.muted, hollow=True, width=2)
        paste_photo(page, photos, (x, y, 114, 114))
        page.text(x, y + 120, f"IMG_{rng.randrange(10000):04d}.png", page.font(11, 12))


PLAIN: tuple[Kind, ...] = (calendar, music, street_map, chat, floor_plan, blocks, icons)
WITH_PHOTO: tuple[KindWithPhoto, ...] = (newspaper, gallery)
