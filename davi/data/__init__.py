"""Images as integer tensors ``[N, C, H, W]`` with their number of levels: sets, splits, binarisation, presentation.

:func:`load` turns a :class:`DataConfig` into training, validation and test :class:`Images` and the protocol that every
result measured on them must carry. :class:`Order` and :class:`Presentation` say in which order, and in what form, a
model sees the training images. This package imports nothing of the rest of the library but its error type.
"""

from davi.data.binarization import Binarization
from davi.data.folder import has_validation
from davi.data.images import Images
from davi.data.presentation import Flip, Order, Presentation
from davi.data.protocol import DataConfig, DataSets, check_same, kind_of, load, which_images

__all__ = [
    "Binarization",
    "DataConfig",
    "DataSets",
    "Flip",
    "Images",
    "Order",
    "Presentation",
    "check_same",
    "has_validation",
    "kind_of",
    "load",
    "which_images",
]
