"""Imports compressai beside a CPU build of torch."""

from __future__ import annotations

import importlib
from typing import Any

import torch

_DEFINED: list[Any] = []


def import_compressai() -> Any:
    """The `compressai` package.

    compressai imports torchvision, whose wheels are built against CUDA torch: beside a CPU torch two of its operators are missing and its import
    fails. Declaring them, unimplemented, lets it import; nothing in image compression calls them.

    Raises:
        ImportError: compressai is not installed (extra `train`).
    """
    if not _DEFINED:
        library: Any = torch.library.Library(  # type: ignore[no-untyped-call]
            "torchvision", "DEF"
        )
        for signature in (
            "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        ):
            try:
                library.define(signature)
            except RuntimeError:  # a torchvision that works has defined them already
                continue
        _DEFINED.append(library)
    package = importlib.import_module("compressai")
    importlib.import_module("compressai.ans")
    return package
