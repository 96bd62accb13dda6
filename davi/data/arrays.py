"""Images from untrusted ``.npy`` and ``.npz`` files.

A file from elsewhere may be cut short, damaged or hostile. Nothing in it is ever executed (no pickles), nothing is
allocated on the word of a header that the file's size does not bear out, and a file is used whole or not at all.

References:
    NumPy developers, "NPY format", https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray

from davi.data.images import Images, check_levels, pixel_dtype
from davi.data.labels import unlabeled
from davi.data.picture import in_words
from davi.errors import UserError

_PREFIX = 12 + 10_000  # magic and lengths, and the longest header that NumPy itself is willing to parse
_CHUNK = 16 * 2**20
_DEFLATE_RATIO = 1032  # the most that one compressed byte can stand for (zlib's technical notes)
_FEW = 4
"""The user is asked about levels when fewer than one in so many occurs."""
_INFERRED_LEVELS = {"bool": 2, "uint8": 256, "uint16": 65536}
_WHOLE, _NAMES, FLOATS, INTEGERS = "bui", "U", "f", "ui"
"""NumPy's letters of the types that hold whole numbers or truth values, strings, real numbers, and whole numbers."""
_EXPECTED = {
    _WHOLE: "whole numbers from 0 (such as uint8) or bool",
    _NAMES: "strings",
    FLOATS: "floating-point numbers",
    INTEGERS: "whole numbers",
}


def read_images(path: Path, levels: int | None, name: str) -> Images:
    """Read the images of a ``.npy`` or ``.npz`` file.

    Arguments:
        path: the file; its array is [N, H, W] or [N, H, W, C], of whole numbers or truth values.
        levels: number of values a channel can take. None infers it from the type: bool 2, uint8 256, uint16 65536.
        name: name of the set.

    Raises:
        UserError: if the file cannot be used; one line that names it.
    """
    array = read_array(path)
    dtype = array.dtype.name
    if levels is None:
        if dtype not in _INFERRED_LEVELS:
            raise UserError(f"data.levels: not given, and {dtype} in {path} does not tell it, expected 2 to 65536")
        levels = _INFERRED_LEVELS[dtype]
    check_levels("data.levels", levels)
    if array.ndim not in (3, 4):
        raise UserError(f"{path}: got shape {array.shape}, expected [N, H, W] or [N, H, W, C]")
    if array.ndim == 4 and array.shape[1] <= 4 and min(array.shape[2:]) >= 8:  # strips of many channels: a mistake
        raise UserError(f"{path}: got shape {array.shape}, which looks like [N, C, H, W], expected [N, H, W, C]")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= levels:  # before the conversion, which would wrap around
        raise UserError(f"{path}: got values {low} to {high}, expected 0 to {levels - 1} (data.levels {levels})")
    return to_images(array, levels, name)


def hints(path: Path, images: Images, levels: int | None, axes_known: bool = False) -> tuple[str, ...]:
    """What the user of an array should be told about how it was read.

    Arguments:
        path: of the file.
        images: that were read from it.
        levels: as given; what a type allows may be more than the values use.
        axes_known: the file is our own; there is nothing to say about its axes.
    """
    channels, height, width = images.shape
    told = []
    if channels > 1 and not axes_known:
        size = f"{in_words(height, width)}, {channels} channels"
        told.append(f"{path} is read as [N, H, W, C]: {len(images)} images, {size}")
    if told and channels != 3 and height in (1, 3):
        told[0] += "; if it is [N, C, H, W], save x.transpose(0, 2, 3, 1)"
    if levels is None and images.levels > 2:
        used = torch.bincount(images.pixels.flatten().int(), minlength=images.levels).nonzero().flatten()
        lowest, largest = int(used[0]), int(used[-1])
        beginning = f"{path} holds {len(used)} values, {lowest} to {largest}, and is read with {images.levels} levels"
        if largest < images.levels // _FEW:
            told.append(f"{beginning}; if there are no others, give --data.levels {max(2, largest + 1)}")
        elif len(used) == 2:
            told.append(f"{beginning}; if it is black and white, give --data.binarization threshold")
        elif images.pixels.numel() >= _FEW * images.levels and len(used) < images.levels // _FEW:
            told.append(f"{beginning}; if there are no others, number them from 0 and give --data.levels {len(used)}")
    return tuple(told)


def read_labels(path: Path) -> NDArray[Any]:
    """Read the labels that a ``.npz`` file has beside its images: an array called ``labels``, or else ``y``.

    Raises:
        UserError: if the file has none, or cannot be used.
    """
    found = read_beside(path, ("labels", "y")) if path.suffix == ".npz" else None
    if found is None:
        raise unlabeled(f"{path} has no labels, which are an array 'labels' or 'y' in a .npz file beside 'images'")
    return found


def read_classes(path: Path) -> tuple[str, ...] | None:
    """Read the names of classes in a ``.npz`` file that DAVI wrote: an array ``classes`` of strings, ``[K]``.

    Returns:
        The names; None if the file has none.

    Raises:
        UserError: if the file cannot be used, or the array is not one of strings.
    """
    found = read_beside(path, ("classes",), _NAMES) if path.suffix == ".npz" else None
    if found is not None and found.ndim != 1:
        raise UserError(f"{path}: got classes {list(found.shape)}, expected a list of names")
    return None if found is None else tuple(found.tolist())


def to_images(array: NDArray[Any], levels: int, name: str) -> Images:
    """Images from an array [N, H, W] or [N, H, W, C] whose values are known to be within the levels."""
    stacked = array[:, None] if array.ndim == 3 else array.transpose(0, 3, 1, 2)  # [N, C, H, W]
    dtype = np.uint8 if pixel_dtype(levels) == torch.uint8 else np.int32
    return Images(torch.from_numpy(np.ascontiguousarray(stacked, dtype=dtype)), levels, name)


def read_array(path: Path, key: str = "images") -> NDArray[Any]:
    """Read one array of whole numbers or truth values.

    Arguments:
        path: a ``.npy`` file, or a ``.npz`` file holding an array called ``key`` or just one array.
        key: the array to take from a ``.npz`` file.

    Raises:
        UserError: if there is no such file, if it is damaged, or if what it holds is not such an array.
    """
    if path.suffix not in (".npy", ".npz"):
        raise UserError(f"{path}: got a file of another kind, expected .npy or .npz")
    with OneLine(path, "a whole .npy or .npz file of integers"):
        path = path.expanduser()
        if not path.is_file():  # a pipe or a device would be waited for without end
            found = "something that is not a file" if path.exists() else "nothing"
            raise UserError(f"{path}: found {found}, expected a .npy or .npz file")
        return _read_npy(path) if path.suffix == ".npy" else _read_npz(path, key)


def array_names(path: Path) -> list[str]:
    """Names of the arrays that a ``.npz`` file holds.

    Raises:
        UserError: if it cannot be read.
    """
    with OneLine(path, "a whole .npz file"), zipfile.ZipFile(path) as archive:
        return list(_members(archive))


def read_beside(
    path: Path, names: Sequence[str], kinds: str = _WHOLE, largest: int | None = None
) -> NDArray[Any] | None:
    """The first of some arrays that a ``.npz`` file holds; None if it holds none of them.

    Arguments:
        path: the file.
        names: of the arrays.
        kinds: NumPy's letters of the types that the array may have.
        largest: numbers that it may hold; None: as many as the file bears out.

    Raises:
        UserError: as :func:`read_array` does.
    """
    with OneLine(path, "a whole .npz file"), zipfile.ZipFile(path.expanduser()) as archive:
        members = _members(archive)
        name = next((name for name in names if name in members), None)
        return None if name is None else _read_member(archive, members[name], path, kinds, largest)


def length(path: Path, key: str = "images") -> int | None:
    """How many images the file of :func:`read_array` says that it holds; None where its reader has something to say.

    Nothing but the header is read.
    """
    with suppress(Exception):  # as of OneLine: damaged bytes have errors of every type
        path = path.expanduser()
        if path.suffix == ".npy" and path.is_file():
            with path.open("rb") as file:
                return _read_header(io.BytesIO(file.read(_PREFIX)), str(path))[0][0]
        if path.is_file():
            with zipfile.ZipFile(path) as archive:
                members = _members(archive)
                with archive.open(members[key] if key in members else next(iter(members.values()))) as member:
                    return _read_header(io.BytesIO(member.read(_PREFIX)), str(path))[0][0]
    return None


class OneLine:
    """A ``with`` block in which whatever goes wrong becomes one line that names the file.

    Readers meet damaged bytes with errors of every type (zlib, struct, tokenizer, Unicode, recursion ...), so no
    shorter list than ``Exception`` would keep tracebacks from the user.

    Arguments:
        path: the file that is read in the block.
        expected: in words, what it should have been.

    Raises:
        UserError: in the place of any other error.
    """

    def __init__(self, path: Path, expected: str) -> None:
        self.path = path
        self.expected = expected

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{self.path}: cannot be read ({reason}), expected {self.expected}") from error


def _read_npy(path: Path) -> NDArray[Any]:
    with path.open("rb") as file:
        return _read_stream(file, path.stat().st_size, str(path))


def _read_npz(path: Path, key: str) -> NDArray[Any]:
    with zipfile.ZipFile(path) as archive:
        members = _members(archive)
        if key not in members and len(members) != 1:
            names = ", ".join(repr(name) for name in sorted(members)[:10]) or "no array"
            raise UserError(f"{path}: found {names}, expected an array called '{key}' or just one array")
        return _read_member(archive, members.get(key) or next(iter(members.values())), path)


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The arrays of a ``.npz`` file by name."""
    return {i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")}


def _read_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, kinds: str = _WHOLE, largest: int | None = None
) -> NDArray[Any]:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"{path}: got packing method {member.compress_type}, expected 0 or 8, as NumPy writes")
    if member.file_size > member.compress_size * _DEFLATE_RATIO or member.compress_size > path.stat().st_size:
        raise UserError(f"{path}: promises {member.file_size} bytes, expected no more than the file can hold")
    with archive.open(member) as file:
        # ZipExtFile is a binary reader in all but the declared type.
        return _read_stream(cast(BinaryIO, file), member.file_size, str(path), kinds, largest)


def _read_stream(file: BinaryIO, size: int, name: str, kinds: str = _WHOLE, largest: int | None = None) -> NDArray[Any]:
    """The array in a stream of ``size`` bytes in NPY format."""
    start = io.BytesIO(file.read(_PREFIX))
    shape, fortran_order, dtype = _read_header(start, name)
    if dtype.hasobject:
        raise UserError(f"{name}: got pickled Python objects, which are never opened, expected {_EXPECTED[kinds]}")
    if dtype.kind not in kinds:
        raise UserError(f"{name}: got {dtype.name}, expected {_EXPECTED[kinds]}")
    if not shape or min(shape) < 1:
        least = "one image and one pixel" if kinds == _WHOLE else "one dimension and one number"
        raise UserError(f"{name}: got shape {shape}, expected at least {least}")
    if largest is not None and math.prod(shape) > largest:
        raise UserError(f"{name}: got an array of shape {shape}, expected at most {largest} numbers")
    promised = math.prod(shape) * dtype.itemsize  # Python's integers: no product is too large for them
    held = size - start.tell()
    if held != promised:
        raise UserError(f"{name}: holds {held} bytes of data, expected {promised} for {dtype.name} {shape}")
    flat = read_exactly(start.read(), file, promised, name).view(dtype)
    return flat.reshape(shape[::-1]).T if fortran_order else flat.reshape(shape)


def _read_header(start: BinaryIO, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the first index runs fastest, and type; the stream stands at the data afterwards."""
    version = np.lib.format.read_magic(start)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(start)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(start)
    raise UserError(f"{name}: got NPY version {version}, expected (1, 0) or (2, 0)")  # (3, 0) is for named fields


def read_exactly(begin: bytes, file: BinaryIO, size: int, name: str) -> NDArray[np.uint8]:
    """``begin`` and what follows in the file, ``size`` bytes altogether, which an archive checks by their CRC."""
    data = np.empty(size, np.uint8)
    data[: len(begin)] = np.frombuffer(begin, np.uint8)
    filled = len(begin)
    while filled < size:
        part = file.read(min(_CHUNK, size - filled))
        if not part:
            raise UserError(f"{name}: ends after {filled} bytes of data, expected {size}")
        data[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
        filled += len(part)
    return data
