"""The walk over the levels, once, for every form of the network (MSINN section III; INTEGER.md, section 3).

```
picture --analysis--> y5 y4 y3 y2 y1                 steps k = 0..4 code them in this order
                        |
   for each k:  cc = cross_scale(support)            what the coarser levels say
                anchors: half the positions, coded with cc alone
                rest:    the other half, coded with cc and what `spatial` makes of the anchors
                y = join(anchors, rest), refined
                support = rise(y, support)           one inverse level of the transform: twice the size
   picture(support)                                 the last step's refine and rise, and the post-filter: a decoder, or an encoder that verifies
```
`begun` ends after some of the steps: its support is what a picture of less than full size is made from.

A network is whatever implements `Network`; a coder decides what happens to the symbols of a half (collected, read, estimated, digested). Shapes and
kinds of arrays are the network's own.
"""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar

from msinn_core.config import LATENT_CHANNELS
from msinn_core.errors import CodecError

NUM_STEPS = len(LATENT_CHANNELS)

A = TypeVar("A")


def anchor_parity(k: int) -> int:
    """`(row + col) % 2` of the positions coded first in step k: odd for even k, even for odd k."""
    return 1 - k % 2


class Network(Protocol[A]):
    """What the walk needs. A half is the checkerboard half of an array, packed to half its width."""

    def cross_scale(self, k: int, support: A | None, shape: tuple[int, ...]) -> A:
        """Features of step k at all positions, from the support; in step 0, which has none, the constants learned for it, at `shape` of y5."""

    def halve(self, x: A, parity: int) -> A:
        """The half of `parity`."""

    def predict(self, k: int, cc: A, sc: A | None) -> A:
        """Parameters of the symbols' distributions of a half, from its cross-scale features and, in the second half, its spatial ones."""

    def code(self, coder: Any, k: int, parity: int, parameters: A, gains: Any) -> A:
        """Latents of a half: its symbols go through the coder and are dequantised."""

    def spatial(self, k: int, anchors: A, parity: int) -> A:
        """Features of the half of `parity` from the other half's latents."""

    def join(self, anchors: A, parity: int, rest: A) -> A:
        """The whole array of two halves; `parity` is the anchors'."""

    def refine(self, k: int, y: A, support: A | None, gains: Any) -> A:
        """Latents plus their predicted residual, at most half a quantisation step."""

    def rise(self, k: int, y: A, support: A | None) -> A:
        """The support of step k + 1; after the last step the picture before its post-filter."""

    def picture(self, support: A) -> Any:
        """The decoded picture."""

    def finish(self, halves: tuple[A, A], support: A | None, gains: Any) -> Any:
        """The decoded picture of the last step's latents (anchors, then the rest) and their support: `finished`, or the same in another order."""


def finished(net: Network[A], halves: tuple[A, A], support: A | None, gains: Any) -> Any:
    """What follows the last step's symbols: join, refine, rise, picture."""
    k = NUM_STEPS - 1
    return net.picture(net.rise(k, net.refine(k, net.join(halves[0], anchor_parity(k), halves[1]), support, gains), support))


class HasPicture(Protocol):
    """What has a decoder's picture for whoever asks: a walk, or one picture's share of a batch's."""

    def picture(self) -> Any:
        """The padded picture, uint8 `[H, W, 3]`; the same again for whoever asks again."""


class Walked(Generic[A]):
    """A walk whose latents are all coded. Its picture, one level of the transform and the post-filter away, is computed when it is asked for.

    Until then it holds the finest latents and their support, of the integer network 12 bytes per pixel; afterwards the picture. Whoever wants
    no picture lets go of it.

    Args:
        net: The network.
        gains: Gains at the q in force.
        halves: Last step's latents: anchors, then the rest.
        support: Last step's.
    """

    def __init__(self, net: Network[A], gains: Any, halves: tuple[A, A], support: A | None) -> None:
        self._net, self._gains = net, gains
        self._latents: list[tuple[tuple[A, A], A | None]] = [(halves, support)]
        self._picture: Any = None

    def picture(self) -> Any:
        """`Network.picture`; the same again for whoever asks again. Raises what the network raises; `CodecError` if it did so before."""
        if self._latents:
            # Taken out first: what the last level no longer needs is to be free while the post-filter runs.
            self._picture = self._net.finish(*self._latents.pop(), self._gains)
        if self._picture is None:
            raise CodecError("the picture of this walk was asked for before, and could not be computed")
        return self._picture


def walk(net: Network[A], coder: Any, gains: Any, shape: tuple[int, ...]) -> Walked[A]:
    """Code all latents, coarse to fine, through a coder.

    Args:
        net: The network.
        coder: Supplies the symbols.
        gains: Gains at the q in force.
        shape: Of y5, without channels.

    Returns:
        The walk, which has the picture for whoever asks.
    """
    support = begun(net, coder, gains, shape, NUM_STEPS - 1)
    return Walked(net, gains, _coded(net, coder, NUM_STEPS - 1, support, shape, gains), support)


def begun(net: Network[A], coder: Any, gains: Any, shape: tuple[int, ...], num_steps: int) -> A:
    """Code the latents of the first steps, and return the support of the step that follows.

    Args:
        net: The network.
        coder: Supplies the symbols.
        gains: Gains at the q in force.
        shape: Of y5, without channels.
        num_steps: 1 to `NUM_STEPS`; after the last the support is the picture before its post-filter.
    """
    support: A | None = None
    for k in range(num_steps):
        anchors, rest = _coded(net, coder, k, support, shape, gains)
        # What is no longer needed is let go of, here and below: of a large picture each of these is hundreds of megabytes.
        y = net.join(anchors, anchor_parity(k), rest)
        del anchors, rest
        support = net.rise(k, net.refine(k, y, support, gains), support)
        del y
    assert support is not None
    return support


def _coded(net: Network[A], coder: Any, k: int, support: A | None, shape: tuple[int, ...], gains: Any) -> tuple[A, A]:
    """Latents of step k: anchors, then the rest."""
    parity = anchor_parity(k)
    features = net.cross_scale(k, support, shape)
    parameters = net.predict(k, net.halve(features, parity), None)
    features = net.halve(features, 1 - parity)
    anchors = net.code(coder, k, parity, parameters, gains)
    del parameters
    parameters = net.predict(k, features, net.spatial(k, anchors, 1 - parity))
    del features
    return anchors, net.code(coder, k, 1 - parity, parameters, gains)
