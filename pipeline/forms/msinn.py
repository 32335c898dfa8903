"""`msinn`: what the network codes. Its encoder is `encode.coder`, its decoder `read.decoder`: both need a model, which no other form does."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.forms.base import Exact


@dataclass(frozen=True, slots=True)
class LearnedForm:
    """What the family says of it, and of `near`, which is built on it.

    Attributes:
        name: In the manifest; `exact`: its promise; `codec`: what decodes it.
    """

    name: str = "msinn"
    exact: Exact = Exact.NO
    codec: str = "msinn"


MSINN = LearnedForm()
