"""Numbers of either sign as small pictures: red above zero, blue below, nearly white at zero.

The three channels of a color image are shown as such: gray is zero, a channel is brighter above and darker below.
"""

from __future__ import annotations

import torch
from matplotlib import colormaps
from torch import Tensor

from davi.page import pixels
from davi.page.blocks import Picture, Scale

_LAST = 254
"""Place of the largest number in the palette; zero is in the middle, at 127, and is neutral."""

PALETTE = torch.tensor(
    [[round(255 * part) for part in colormaps["RdBu_r"](place / _LAST)[:3]] for place in range(_LAST + 1)],
    dtype=torch.uint8,
)
"""Colors from the least to the largest, ``[255, 3]``."""


def sheet(x: Tensor, high: float, columns: int, alt: str, longest: int, room: int = pixels.ROOM) -> Picture:
    """Maps of signed numbers in rows.

    Arguments:
        x: ``[N, C, H, W]``. Of other than three channels, the mean over channels is shown.
        high: the size of a number at either end of the scale, above 0.
        columns: maps in a row.
        alt: what there is to see.
        longest: of the sides of one map, in pixels of the picture.
        room: pixels of the screen in either direction.
    """
    return pixels.sheet(colored(pixels.shrunk(x.double(), longest), high), 256, columns, alt, longest, room)


def colored(x: Tensor, high: float) -> Tensor:
    """Colors of signed numbers ``[N, C, H, W]``: ``uint8``, ``[N, 3, H, W]``."""
    share = (x.double() / high).clamp(-1.0, 1.0)
    if x.shape[1] == 3:
        return (127.5 + 127.5 * share).round().to(torch.uint8)
    places = ((share.mean(1) + 1.0) * (_LAST / 2)).round().long()  # [N, H, W]
    return PALETTE[places].permute(0, 3, 1, 2)


def legend(high: float, what: str) -> Scale:
    """What the colors mean."""
    places = torch.linspace(0, _LAST, 9).round().long()
    colors = tuple("#{:02x}{:02x}{:02x}".format(*color) for color in PALETTE[places].tolist())
    return Scale(f"{what}: -{high:.3g}", f"{high:.3g}, white is 0", colors)
