"""A real browser without a window: frames of HTML as pictures, pages of HTML as PDF."""

from __future__ import annotations

import html
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_TIMEOUT_S = 240
_SUBPIXEL = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig><include>/etc/fonts/fonts.conf</include>
<match target="font"><edit name="rgba" mode="assign"><const>rgb</const></edit></match>
<match target="pattern"><edit name="rgba" mode="assign"><const>rgb</const></edit></match></fontconfig>"""


def browser() -> str | None:
    """Path of a browser, or None if there is none: `apt-get install chromium`."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


def _run(options: Sequence[str], page: Path, folder: Path) -> None:
    command = [browser() or _NAMES[0], "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}"]
    # A folder without this file has fontconfig's own settings.
    fonts = {"FONTCONFIG_FILE": str(folder / "fonts.conf")} if (folder / "fonts.conf").exists() else {}
    done = subprocess.run([*command, *options, page.as_uri()], capture_output=True, text=True, timeout=_TIMEOUT_S, env=os.environ | fonts)
    if done.returncode:
        raise RuntimeError(f"the browser failed: {done.stderr.strip()[-400:]}")


def frames(pages: Sequence[str], width: int, height: int, *, scale: float = 1.0, subpixel: bool = False) -> list[Image.Image]:
    """Screenshots of pages of one size, all of one start of the browser: each is a frame in a tall one.

    Args:
        pages: HTML, each whole.
        width: Of a page, in CSS pixels, and `height`.
        scale: Pixels of the picture to one of CSS.
        subpixel: Text is smoothed for the red, green and blue stripes of an LCD.

    Raises:
        RuntimeError: The browser failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        style = f"<style>body{{margin:0}}iframe{{display:block;border:0;width:{width}px;height:{height}px}}</style>"
        inner = "".join(f'<iframe srcdoc="{html.escape(page)}"></iframe>' for page in pages)
        (folder / "all.html").write_text(f"<!doctype html><meta charset=utf-8>{style}<body>{inner}</body>")
        options = [f"--screenshot={folder / 'all.png'}", f"--window-size={width},{height * len(pages)}", f"--force-device-scale-factor={scale:g}"]
        if subpixel:
            (folder / "fonts.conf").write_text(_SUBPIXEL)
        _run([*options, "--enable-lcd-text" if subpixel else "--disable-lcd-text"], folder / "all.html", folder)
        with Image.open(folder / "all.png") as image:
            whole = np.asarray(image.convert("RGB"))
    w, h = round(width * scale), round(height * scale)
    if whole.shape[0] < h * len(pages) or whole.shape[1] < w:
        raise RuntimeError(f"the browser gave {whole.shape[1]} x {whole.shape[0]} pixels for {len(pages)} frames of {w} x {h}")
    return [Image.fromarray(whole[i * h : (i + 1) * h, :w].copy()) for i in range(len(pages))]


def printed(page: str, dpi: int) -> list[Image.Image]:
    """Printed to PDF, and each sheet of it as a picture in shades of grey or colours.

    Args:
        page: HTML, whole.
        dpi: Pixels to an inch.

    Raises:
        RuntimeError: The browser or `pdftoppm` failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "all.html").write_text(page)
        _run([f"--print-to-pdf={folder / 'all.pdf'}", "--no-pdf-header-footer"], folder / "all.html", folder)
        command = ["pdftoppm", "-r", str(dpi), "-png", str(folder / "all.pdf"), str(folder / "sheet")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
        if done.returncode:
            raise RuntimeError(f"pdftoppm failed: {done.stderr.strip()[-400:]}")
        return [Image.open(path).convert("RGB") for path in sorted(folder.glob("sheet*.png"))]
