"""Images as integer tensors ``[N, C, H, W]`` with their number of levels: sets, splits, binarisation, presentation.

:func:`load` turns a :class:`DataConfig` into training, validation and test :class:`Images` and the protocol that every
result measured on them must carry; :func:`select` into the images of one split, or all images of a set. :class:`Order`
and :class:`Presentation` say in which order, and in what form, a model sees the training images. This package imports
nothing of the rest of the library but its error type.
"""

from davi.data.binarization import Binarization
from davi.data.config import DataConfig, which_images
from davi.data.images import Images
from davi.data.presentation import Flip, Order, Presentation
from davi.data.protocol import DataSets, Selection, check_same, load, select
from davi.data.sources import kind_of, unused
from davi.data.splitting import repeated
from davi.data.subfolders import has_validation

__all__ = [
    "Binarization",
    "DataConfig",
    "DataSets",
    "Flip",
    "Images",
    "Order",
    "Presentation",
    "Selection",
    "check_same",
    "has_validation",
    "kind_of",
    "load",
    "repeated",
    "select",
    "unused",
    "which_images",
]
