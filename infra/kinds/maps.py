"""Maps, each drawn on one of matplotlib's axes: fields in lines and colours, streets, regions, relief, arrows."""

from __future__ import annotations

from typing import Any

import numpy as np

from infra.kinds.plots import Array, Rng, Say, colours


def field(rng: Rng, side: int = 160) -> Array:
    """`[side, side]`, smooth: random waves, the longer the stronger."""
    rows = np.fft.fftfreq(side)[:, None]
    columns = np.fft.fftfreq(side)[None]
    strength = 1 / (np.hypot(rows, columns) + 1 / side) ** rng.uniform(1.8, 3.2)
    found = np.fft.ifft2(strength * np.exp(2j * np.pi * rng.random((side, side)))).real
    return np.asarray((found - found.mean()) / found.std())


def contours(axes: Any, rng: Rng, say: Say) -> None:
    """Lines of equal value with their numbers on them."""
    drawn = axes.contour(field(rng), levels=int(rng.integers(6, 18)), cmap=colours(rng), linewidths=rng.uniform(0.6, 1.6))
    axes.clabel(drawn, fontsize="x-small")
    _mark(axes, rng, say, 160)


def filled_contours(axes: Any, rng: Rng, say: Say) -> None:
    """Bands of colour between lines of equal value, with a scale."""
    values = field(rng)
    drawn = axes.contourf(values, levels=int(rng.integers(6, 24)), cmap=colours(rng))
    if rng.random() < 0.5:
        axes.contour(values, levels=8, colors="k", linewidths=0.5)
    axes.figure.colorbar(drawn, ax=axes)


def relief(axes: Any, rng: Rng, say: Say) -> None:
    """Land and sea from above, shaded as if the sun stood in the north-west."""
    from matplotlib import colormaps
    from matplotlib.colors import LightSource

    height = field(rng, 220)
    light = LightSource(azdeg=315, altdeg=float(rng.uniform(25, 60)))
    axes.imshow(light.shade(height, cmap=colormaps[str(rng.choice(("terrain", "gist_earth", "Greys_r", "summer")))], vert_exag=20, blend_mode="soft"))
    if rng.random() < 0.5:
        axes.contour(height, levels=10, colors="k", linewidths=0.4)
    _mark(axes, rng, say, 220)


def streets(axes: Any, rng: Rng, say: Say) -> None:
    """A town: parks and water, blocks of houses, streets of three widths with edges, names along them."""
    axes.set_facecolor(str(rng.choice(("#f2efe9", "#f8f4f0", "#eeeeee", "#1d2430"))))
    for colour in ("#aad3df", "#add19e", "#c8facc"):
        corner = rng.uniform(0, 100, 2)
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        radius = rng.uniform(5, 22, 9)
        axes.fill(corner[0] + radius * np.cos(angles), corner[1] + radius * np.sin(angles), color=colour)
    for x, y in rng.uniform(0, 100, (int(rng.integers(80, 260)), 2)):
        axes.fill([x, x + 3, x + 3, x], [y, y, y + 2, y + 2], color="#d9d0c9", ec="#b8aea5", linewidth=0.5)
    for width, colour, count in ((2.0, "#ffffff", 26), (3.5, "#fcd6a4", 8), (5.0, "#e892a2", 3)):
        for _ in range(count):
            start, angle, bend = rng.uniform(0, 100, 2), rng.choice((0.1, 0.1 + np.pi / 2, rng.uniform(0, 3))), rng.normal(0, 0.004)
            at = np.linspace(-60, 60, 40)
            x, y = start[0] + at * np.cos(angle + bend * at), start[1] + at * np.sin(angle + bend * at)
            axes.plot(x, y, color="#8a8078", linewidth=width + 1.2, zorder=width)
            axes.plot(x, y, color=colour, linewidth=width, zorder=width + 0.01)
            if rng.random() < 0.4:
                axes.text(x[20], y[20], say(), rotation=float(np.degrees(angle)) % 180, fontsize="x-small", zorder=9, ha="center", clip_on=True)
    axes.set(xlim=(0, 100), ylim=(0, 100))
    _bare(axes, rng)


def regions(axes: Any, rng: Rng, say: Say) -> None:
    """Regions in the colours of their values, with borders and names."""
    from scipy.spatial import Voronoi

    points = rng.uniform(-0.3, 1.3, (int(rng.integers(40, 220)), 2))
    cells = Voronoi(points)
    from matplotlib import colormaps

    palette = colormaps[colours(rng)]
    border = str(rng.choice(("white", "black", "0.4")))
    for point, region in zip(points, cells.point_region, strict=True):
        corners = cells.regions[region]
        if corners and -1 not in corners:
            axes.fill(*cells.vertices[corners].T, color=palette(rng.random()), ec=border, linewidth=0.7)
            if point.min() > 0.05 and point.max() < 0.95 and rng.random() < 0.3:
                axes.text(*point, say()[:8], fontsize="x-small", ha="center", clip_on=True)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    _bare(axes, rng)


def arrows(axes: Any, rng: Rng, say: Say) -> None:
    """Wind: arrows over a field in colours."""
    u, v = field(rng, 24), field(rng, 24)
    if rng.random() < 0.6:
        axes.imshow(np.hypot(u, v), cmap=colours(rng), origin="lower", interpolation="bilinear", alpha=0.8)
    axes.quiver(u, v, pivot="mid", label=say())


def streams(axes: Any, rng: Rng, say: Say) -> None:
    """Lines along a flow, coloured by its speed."""
    u, v = field(rng, 40), field(rng, 40)
    at = np.arange(40)
    axes.streamplot(at, at, u, v, color=np.hypot(u, v), cmap=colours(rng), density=rng.uniform(0.8, 1.6), linewidth=rng.uniform(0.6, 1.6))


def routes(axes: Any, rng: Rng, say: Say) -> None:
    """Lines of a railway: stations with names on lines that bend by 45 degrees."""
    for line in range(rng.integers(4, 9)):
        at, heading, path = rng.integers(0, 40, 2), int(rng.integers(8)), []
        for _ in range(12):
            path.append(at)
            heading += int(rng.choice((-1, 0, 0, 0, 1)))
            at = at + np.array([(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)][heading % 8]) * 3
        axes.plot(*np.array(path).T, linewidth=5, color=f"C{line}", solid_joinstyle="round", zorder=1)
        axes.scatter(*np.array(path[::2]).T, s=30, color="white", ec="black", zorder=2)
        for place in path[::4]:
            axes.text(*(place + 0.7), say(), fontsize="x-small", zorder=3)
    axes.set_aspect("equal")
    _bare(axes, rng)


def _mark(axes: Any, rng: Rng, say: Say, side: int) -> None:
    """A few places with names."""
    for x, y in rng.uniform(0.08, 0.85, (int(rng.integers(0, 7)), 2)) * side:
        axes.plot(x, y, "k.")
        axes.text(x + side / 60, y, say(), fontsize="small", clip_on=True)


def _bare(axes: Any, rng: Rng) -> None:
    if rng.random() < 0.7:
        axes.set_xticks([])
        axes.set_yticks([])
