"""What every part of the page is made of: text made safe, sizes for people, pictures that lie in the page itself, and its style and script.

The page loads nothing: its policy names the one style and the one script that it has by their hashes, so that a browser runs no other, whatever an
image is called.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Iterable

from markupsafe import Markup
from PIL import Image

from pipeline.text import shown

_LONGEST = 240
"""Characters of a text from outside that are shown: a manifest may call an image by a megabyte."""

_MEASURABLE = 1e6

STYLE = """:root{color-scheme:light dark;--page:#fff;--text:#1d2127;--soft:#5b6470;--line:#d5dae0;--card:#f5f7f9;--bad:#b3261e;--badpage:#fdecea;
--good:#1b6e3c;--a:#2f6db5;--b:#d9822b;--c:#6a4fb3;--d:#8a8f98;--e:#2f9e8f;--mark:#b3261e}
@media (prefers-color-scheme:dark){:root{--page:#14171b;--text:#e4e7eb;--soft:#9aa4b0;--line:#363d46;--card:#1d2227;--bad:#ff8a80;--badpage:#3a1d1b;
--good:#7fd6a0;--a:#6ea8e8;--b:#f0a95a;--c:#a890ee;--d:#8f97a3;--e:#5fcbbb;--mark:#ff8a80}}
*{box-sizing:border-box}body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:70rem;padding:1rem;background:var(--page);color:var(--text)}
h1{font-size:1.4rem;line-height:1.25;margin:.2rem 0}h2{font-size:1.15rem;margin:2.2rem 0 .5rem;padding-top:.8rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:0}h1,h2,h3,p,dd,.name,li,figcaption,code{overflow-wrap:anywhere}p{margin:.4rem 0}a{color:var(--a)}
.soft,figcaption,dt{color:var(--soft)}.small,figcaption{font-size:.85rem}.bad{color:var(--bad)}.good{color:var(--good)}.n{text-align:right;white-space:nowrap}
.alarm{background:var(--badpage);border-left:.3rem solid var(--bad);padding:.6rem 1rem;margin:.8rem 0}.alarm ul{margin:.3rem 0;padding-left:1.2rem}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.15rem 1rem;margin:.8rem 0}dd{margin:0}
.wide{overflow-x:auto}table{border-collapse:collapse;margin:.5rem 0}th,td{padding:.2rem .9rem .2rem 0;text-align:left;vertical-align:top}
th{color:var(--soft);font-weight:600}tbody tr{border-top:1px solid var(--line)}td.name{min-width:11rem}
th button{all:unset;cursor:pointer;text-decoration:underline dotted}th button:focus-visible{outline:2px solid var(--a)}
th[aria-sort=ascending] button::after{content:" \\2191"}th[aria-sort=descending] button::after{content:" \\2193"}
input{font:inherit;width:100%;max-width:24rem;padding:.3rem .5rem;border:1px solid var(--line);background:var(--card);color:var(--text)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1rem 2rem}
figure{margin:0}figure>svg{max-width:36rem}svg{width:100%;height:auto;display:block;font:13px system-ui,sans-serif}
svg text{fill:var(--soft)}.axis{stroke:var(--line)}
.mark{stroke:var(--mark);stroke-width:1.5;stroke-dasharray:5 3}svg text.mark{fill:var(--mark);stroke:none}
.a{fill:var(--a)}.b{fill:var(--b)}.c{fill:var(--c)}.d{fill:var(--d)}.e{fill:var(--e)}polyline{fill:none;stroke-width:2}
polyline.a{stroke:var(--a);fill:none}polyline.b{stroke:var(--b);fill:none}polyline.c{stroke:var(--c);fill:none}.point{stroke:var(--page);stroke-width:2}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1.2rem;margin:.3rem 0;padding:0;list-style:none;font-size:.9rem}
.legend svg{display:inline-block;width:.8em;height:.8em;margin-right:.4em}
.card{background:var(--card);padding:.8rem;margin:1rem 0}.shots{display:flex;flex-wrap:wrap;gap:.8rem;margin-top:.6rem}
.shots figure{width:256px;max-width:100%}.shots figure.whole{width:auto;max-width:160px}
.shots img{display:block;image-rendering:pixelated;background:var(--line)}.shots .whole img{image-rendering:auto;max-width:100%;height:auto}
@media (max-width:40rem){.more{display:none}
table{font-size:.9rem}th,td{padding-right:.6rem}dl{grid-template-columns:minmax(0,1fr)}dt{margin-top:.4rem}}
@media print{#tools{display:none}.card{break-inside:avoid}}"""

SCRIPT = """(() => {
const table = document.getElementById("worst");
if (!table) return;
const rows = [...table.tBodies[0].rows], box = document.getElementById("search"), count = document.getElementById("count");
document.getElementById("tools").hidden = false;
const find = () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let found = 0;
  for (const row of rows) {
    row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
    found += !row.hidden;
  }
  count.textContent = `${found} of ${rows.length} shown`;
};
const value = (row, i) => { const cell = row.cells[i]; return "v" in cell.dataset ? Number(cell.dataset.v) : cell.textContent.toLowerCase(); };
const heads = [...table.tHead.rows[0].cells];
heads.forEach((head, i) => {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = head.textContent;
  head.replaceChildren(button);
  button.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    rows.sort((x, y) => { const a = value(x, i), b = value(y, i); return (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1); });
    table.tBodies[0].append(...rows);
  });
});
box.addEventListener("input", find);
find();
})();"""


def html(template: str, *values: object) -> Markup:
    """A template of ours with values from anywhere: texts are escaped unless they are `Markup` already, and show no control characters; numbers may
    be formatted."""
    return Markup(template).format(*(value if isinstance(value, Markup | int | float) else shown(value) for value in values))


def join(parts: Iterable[Markup]) -> Markup:
    """One after the other."""
    return Markup("").join(parts)


def clipped(text: object, longest: int = _LONGEST) -> str:
    """A text from outside with its middle left out if it has more than `longest` characters: a name's end says what kind of file it is."""
    whole = str(text)
    return whole if len(whole) <= longest else f"{whole[: longest // 2]} … {whole[-longest // 3 :]}"


def size(num_bytes: float) -> str:
    """Bytes for people: `3.10 MB`.

    >>> size(999), size(3_104_256)
    ('999 bytes', '3.10 MB')
    """
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.3g} {unit}" if num_bytes >= 100 * factor else f"{num_bytes / factor:.2f} {unit}"
    return f"{num_bytes:,.0f} bytes"


def measured(number: float | None, digits: int) -> str:
    """A measured number for people: with so many digits after the point where it is one that can be measured, `?` where it is not known.

    >>> measured(27.018, 2), measured(1e308, 2), measured(None, 2)
    ('27.02', '1e+308', '?')
    """
    if number is None:
        return "?"
    return f"{number:.{digits}f}" if abs(number) < _MEASURABLE else f"{number:.3g}"


def sortable(number: float | None, otherwise: float = -1.0) -> float:
    """A number by which a script may sort: `otherwise` for none, and for what is no number or no finite one."""
    return number if number is not None and math.isfinite(number) else otherwise


def counted(images: int) -> str:
    """A number of images for people.

    >>> counted(1), counted(1200)
    ('1 image', '1,200 images')
    """
    return f"{images:,} {'image' if images == 1 else 'images'}"


def data_uri(image: Image.Image, *, lossless: bool = True) -> str:
    """A picture as an address that holds it.

    Args:
        image: `RGB`.
        lossless: As WebP without loss, so that what is seen are the codec's own errors; otherwise as a small JPEG, to find one's way.
    """
    out = io.BytesIO()
    if lossless:
        image.save(out, "WEBP", lossless=True, quality=50, method=3)
    else:
        image.save(out, "JPEG", quality=80)
    return f"data:image/{'webp' if lossless else 'jpeg'};base64,{base64.b64encode(out.getvalue()).decode()}"


def document(title: str, body: Iterable[Markup], *, script: bool = True) -> str:
    """The whole page.

    Args:
        title: Of the window.
        body: Its parts.
        script: Whether it has something to search and sort.
    """
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(STYLE)}'; base-uri 'none'; form-action 'none'"
    if script:
        policy += f"; script-src '{_hash(SCRIPT)}'"
    head = html(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        "<title>{}</title>\n<style>{}</style>\n</head>\n<body>",
        policy, title, Markup(STYLE),
    )  # fmt: skip
    tail = html("<script>{}</script>\n</body>\n</html>\n", Markup(SCRIPT)) if script else Markup("</body>\n</html>\n")
    return "\n".join([head, *body, tail])


def _hash(text: str) -> str:
    """How a policy names an element by its content."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
