"""Images as integer tensors ``[N, C, H, W]`` with their number of levels: sets, splits, binarization, presentation.

:func:`load` turns a :class:`DataConfig` into training, validation and test :class:`Images` and the protocol that every
result measured on them must carry; :func:`select` into the images of one split, or all images of a set.
:class:`Sampler` and :class:`Augmentation` say in which order, and in what form, a model sees the training images. This
package imports nothing of the rest of the library but its error type and how a run names images in its folder.
"""

from davi.data.augmentation import Augmentation, Flip, Sampler
from davi.data.binarization import Binarization
from davi.data.config import DataConfig, which_images
from davi.data.geometry import geometry_of
from davi.data.images import Images
from davi.data.labels import labeled
from davi.data.protocol import DataSets, Selection, check_same, load, select
from davi.data.sources import kind_of, unused
from davi.data.splitting import repeated
from davi.data.subfolders import has_validation
from davi.data.subsets import evenly

__all__ = [
    "Augmentation",
    "Binarization",
    "DataConfig",
    "DataSets",
    "Flip",
    "Images",
    "Sampler",
    "Selection",
    "check_same",
    "evenly",
    "geometry_of",
    "has_validation",
    "kind_of",
    "labeled",
    "load",
    "repeated",
    "select",
    "unused",
    "which_images",
]
