"""The ``data:`` section of a recipe: its options, and checks that hold for any set."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from davi.data.augmentation import LARGEST_SHIFT, Flip, check_choice
from davi.data.binarization import Binarization
from davi.data.images import check_levels
from davi.data.picture import MAX_PIXELS
from davi.errors import UserError

HOW_READ = ("root", "cache", "memory", "skip_unreadable", "max_pixels")
"""Options that say where and how images are read; which they are, their hashes say."""


def sides(given: Any) -> Any:
    """A size in pixels as [H, W], from a whole number (for both), two, or two in a text: ``32``, ``[32, 48]``,
    ``"32,48"``.

    Raises:
        ValueError: if it is none of these; the message says what is expected.
    """
    if given is None:
        return None
    parts = given.split(",") if isinstance(given, str) else given if isinstance(given, (list, tuple)) else [given]
    try:
        numbers = [int(part) if isinstance(part, str) else part for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or any(type(number) is not int for number in numbers):
        raise ValueError("a size in pixels: 32, or H,W")
    return numbers * 2 if len(numbers) == 1 else numbers


def _american(given: Any) -> Any:
    return "gray" if given == "grey" else given


Size = Annotated[tuple[int, int] | None, sides]
"""(H, W) in pixels."""


@dataclass(frozen=True)
class DataConfig:
    """Which images, how they are split, and what is done to them.

    Arguments:
        set: name of a set (digits, photos, mnist, binarized_mnist, fashion_mnist, omniglot28, cifar10), or the path of
            a folder of images (:mod:`davi.data.folder`), of the files of a distribution (:mod:`davi.data.formats`), or
            of a .npy or .npz file that holds an array [N, H, W] or [N, H, W, C]; or hub:NAME or hub:PATH
            (:mod:`davi.data.hub`). In a run that keeps its images itself, run:FILE (:mod:`davi.kept`).
        root: directory with one folder for each named set; the environment variable DAVI_DATA when not given. For no
            set that is given by its path. Of run:FILE the folder of the run.
        binarization: none; static (all images drawn once); dynamic (training images drawn at each presentation,
            validation and test once); threshold (one where the gray value is above one half).
        binarization_seed: seed of everything that is drawn once.
        flip: mirror training images at random at each presentation: none, horizontal, or both ways.
        random_crop: pixels of zeros around each training image, of which a part of its own size is taken at random at
            each presentation; 0: the image as it is. Where it is mirrored too, that is done afterwards.
        validation: training images kept out for validation, the last ones: a fraction below 1, or a number of images.
            Of a folder of images it is a fraction, chosen by content.
        levels: number of values a channel can take, where the type of the files does not tell it (bool 2, uint8 256,
            uint16 65536) or allows more than there are.
        test: path of the test images when ``set`` is the path of a folder or of a file that has none of its own, a
            folder if that is one. Copies of test images are left out of training.
        test_fraction: of the images, for test: of a folder chosen by content, of an array or another file that holds a
            whole set the last ones. For no set that has test images of its own, and not beside ``test``.
        crop: [H, W] in pixels, or one number for both: of each image of a folder the center is taken.
        resize: [H, W] in pixels, or one number for both: of each image of a folder the largest centered part with these
            proportions is resampled to this size (Lanczos).
        patches: [H, W] in pixels, or one number for both: each image of a folder is cut into parts of this size side by
            side, from the top left; what is left over is not used. All parts are in the split of their image.
        background: white, gray or black, on which transparent images of a folder or of hub:NAME are put; else they are
            refused.
        mode: rgb or gray: all images of a folder or of hub:NAME become that, gray ones with three equal channels,
            colored ones with the luma of ITU-R BT.601; else all must be alike.
        skip_unreadable: leave out images of a folder that cannot be read, and say how many; else they are an error.
        max_pixels: that an image of a folder or of hub:NAME may have; one that promises more is refused before it is
            decoded.
        cache: folder where decoded images (of a folder, or of hub:NAME) are kept; the environment variable DAVI_CACHE
            when not given, else ~/.cache/davi.
        memory: GiB. Decoded images of a folder that take more are read from the cache as they are needed; but static
            and threshold binarization make images anew, in memory, one byte a value.
        labels: read the class of each image as well (:mod:`davi.data.labels`), for models and measures that ask for it.
            A set that has no labels is then refused.
    """

    set: str = "digits"
    root: str | None = None
    binarization: Literal["none", "static", "dynamic", "threshold"] = "none"
    binarization_seed: int = 0
    flip: Literal["none", "horizontal", "both"] = "none"
    random_crop: int = 0
    validation: float | int = 0
    levels: int | None = None
    test: str | None = None
    test_fraction: float = 0.1
    crop: Size = None
    resize: Size = None
    patches: Size = None
    background: Annotated[Literal["white", "gray", "black"] | None, _american] = None
    mode: Annotated[Literal["rgb", "gray"] | None, _american] = None
    skip_unreadable: bool = False
    max_pixels: int = MAX_PIXELS
    cache: str | None = None
    memory: float = 1.0
    labels: bool = False


def which_images(section: Any) -> Any:
    """A ``data:`` section with all its options but those that say where and how images are read, not which.

    Sections written by an older version lack options: they get their defaults. What is no section is returned as it is.
    """
    if not isinstance(section, Mapping):
        return section
    whole = {**dataclasses.asdict(DataConfig()), **section}
    return {key: value for key, value in whole.items() if key not in HOW_READ}


def check(config: DataConfig) -> None:
    """Refuse options that no set could have."""
    check_choice("data.binarization", config.binarization, get_args(Binarization))
    check_choice("data.flip", config.flip, get_args(Flip))
    seed = config.binarization_seed
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise UserError(f"data.binarization_seed: got {seed!r}, expected a whole number from 0")
    kept = config.validation
    whole = isinstance(kept, int) or (isinstance(kept, float) and (kept < 1 or kept.is_integer()))
    if isinstance(kept, bool) or not whole or not 0 <= kept < math.inf:
        raise UserError(f"data.validation: got {kept!r}, expected a fraction below 1 or a number of images")
    for name in ("root", "test", "cache"):
        if "\0" in (getattr(config, name) or ""):
            raise UserError(f"data.{name}: got {getattr(config, name)!r}, expected a path")
    if config.levels is not None:
        check_levels("data.levels", config.levels)
    if not 0 < config.test_fraction < 1:
        raise UserError(f"data.test_fraction: got {config.test_fraction}, expected a fraction between 0 and 1")
    if not 0 <= config.random_crop <= LARGEST_SHIFT:
        expected = f"a number of pixels from 0 to {LARGEST_SHIFT}"
        raise UserError(f"data.random_crop: got {config.random_crop}, expected {expected}")
    if config.max_pixels < 1:
        raise UserError(f"data.max_pixels: got {config.max_pixels}, expected a number of pixels from 1")
    if not config.memory >= 0:
        raise UserError(f"data.memory: got {config.memory}, expected a number of GiB from 0")
