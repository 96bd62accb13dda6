"""Single files in the forms in which MNIST, OMNIGLOT and CIFAR are distributed, as arrays.

Like :mod:`davi.data.arrays`: nothing in a file is executed, no header is believed beyond what the file can hold, and a
file is used whole or not at all.

References:
    Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", 1998, http://yann.lecun.com/exdb/mnist/
    (the IDX form)

    H. Larochelle, I. Murray, "The Neural Autoregressive Distribution Estimator", 2011 (the rows of text),
    https://proceedings.mlr.press/v15/larochelle11a.html

    Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", 2016 (``chardata.mat``),
    https://arxiv.org/abs/1509.00519

    A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009 (the binary version of CIFAR),
    https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import tarfile
import warnings
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from davi.data.arrays import OneLine, read_exactly
from davi.data.labels import unlabeled
from davi.errors import UserError

IDX_IMAGES = 0x803
"""First four bytes of an IDX file of images: unsigned bytes (8), three dimensions."""
IDX_LABELS = 0x801
"""The same of labels: one dimension."""

_PACKING = 100  # bytes from one packed byte; MNIST has 5, its binarized form 30
_SMALL = 64 * 2**20  # what may be unpacked from any file, however small
_DIGIT = 28 * 28
_LONGEST_ROW = 4 * _DIGIT  # bytes of a row of text: a value and its separator are two
_CHARDATA = 2**30  # bytes of all variables; the original unpacks to a fifth of this
_CIFAR_ARCHIVE = 2**28  # bytes of all members; the originals unpack to 185 MB
_CHUNK = 2**20


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The images of an IDX file, ``[N, H, W]``, as it is or packed with gzip (``.gz``).

    Raises:
        UserError: if the file is damaged, not of images, or longer or shorter than it says.
    """
    return _read_idx(path, IDX_IMAGES, "images", "one image and one pixel")


def read_idx_labels(path: Path) -> NDArray[np.uint8]:
    """The labels of an IDX file, ``[N]``, as it is or packed with gzip (``.gz``).

    Raises:
        UserError: if the file is damaged, not of labels, or longer or shorter than it says.
    """
    return _read_idx(path, IDX_LABELS, "labels", "one label")


def _read_idx(path: Path, magic: int, kind: str, least: str) -> NDArray[np.uint8]:
    """The values of an IDX file of one kind; the last byte of its magic number is the number of its dimensions."""
    size = size_of(path)
    with OneLine(path, f"a whole IDX file of {kind}"), unpacked(path) as file:
        begins = int.from_bytes(file.read(4), "big")
        if begins != magic:
            raise UserError(f"{path}: begins with 0x{begins:08x}, expected 0x{magic:08x}, an IDX file of {kind}")
        dimensions = magic & 0xFF
        shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
        if min(shape) < 1:
            raise UserError(f"{path}: got shape {shape}, expected at least {least}")
        promised = math.prod(shape)
        most = max(_SMALL, _PACKING * size) if path.suffix == ".gz" else size
        if promised > most:
            raise UserError(f"{path}: promises {promised} bytes, expected no more than the file can hold")
        values = read_exactly(b"", file, promised, str(path))
        if file.read(1):  # to the end of the file, where gzip checks its CRC
            raise UserError(f"{path}: goes on after {promised} bytes, expected its end there")
    return values.reshape(shape)


def read_amat(path: Path) -> NDArray[np.uint8]:
    """The images of a text file with one image a row, 784 times 0 or 1: ``[N, 28, 28]``.

    Raises:
        UserError: naming the first row that is something else.
    """
    size_of(path)
    rows: list[bytes] = []
    with OneLine(path, "rows of 784 values 0 or 1"), path.open("rb") as file:
        while line := file.readline(_LONGEST_ROW + 1):
            values = line.split()
            row = b"".join(values)
            if not values:
                continue
            if len(values) != _DIGIT or len(row) != _DIGIT or row.translate(None, b"01"):
                raise UserError(f"{path}: row {len(rows) + 1}: {_wrong(values)}, expected {_DIGIT} values 0 or 1")
            rows.append(row)
    if not rows:
        raise UserError(f"{path}: got no rows, expected {_DIGIT} values 0 or 1 in each")
    return (np.frombuffer(b"".join(rows), np.uint8) - ord("0")).reshape(-1, 28, 28)


def _wrong(values: list[bytes]) -> str:
    """What is wrong with a row of text."""
    odd = next((value for value in values if value not in (b"0", b"1")), None)
    return f"got {len(values)} values" if odd is None else f"got {odd[:20].decode('ascii', 'replace')!r}"


def read_chardata(path: Path, levels: int | None) -> tuple[NDArray[Any], NDArray[Any], int]:
    """The OMNIGLOT images of Burda, Grosse and Salakhutdinov's ``chardata.mat``.

    The file holds a column of 784 gray values from 0 to 1 for each image, the first 28 of them being the image's first
    *column*, as MATLAB stores matrices.

    Arguments:
        path: the file, of MATLAB's version 5.
        levels: number of levels L that the values are rounded to, g = round((L - 1) v); None takes 256 where all
            values are multiples of 1/255, and else 65536.

    Returns:
        Training images and test images, each ``[N, 28, 28]`` of whole numbers, and their levels.

    Raises:
        UserError: if the file is damaged, or if ``data`` or ``testdata`` is not such a matrix.
    """
    import scipy.io  # only this set needs it

    size_of(path)
    with OneLine(path, "MATLAB's version 5 with matrices 'data' and 'testdata'"), warnings.catch_warnings():
        warnings.simplefilter("error")  # scipy warns of what it repairs
        _check_unpacked(path)
        held = {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(path)}
        for name in ("data", "testdata"):
            shape, kind = held.get(name, ((), "nothing"))
            if len(shape) != 2 or shape[0] != _DIGIT or shape[1] < 1 or kind not in ("double", "single"):
                raise UserError(f"{path}: {name}: got {kind} {shape}, expected double ({_DIGIT}, N)")
        found = scipy.io.loadmat(path, variable_names=["data", "testdata"])
        train, test = found["data"], found["testdata"]
    for values in (train, test):
        if values.dtype.kind != "f" or not (values.min() >= 0 and values.max() <= 1):  # also false where not a number
            raise UserError(f"{path}: got {values.dtype} {values.min()} to {values.max()}, expected values from 0 to 1")
    levels = levels or (256 if all(map(_is_eight_bit, (train, test))) else 65536)
    return _upright(train, levels), _upright(test, levels), levels


def read_chardata_labels(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The alphabet of each image of ``chardata.mat``: the row of the 1 in its column of ``target`` or ``testtarget``.

    Arguments:
        path: a file that :func:`read_chardata` has read.

    Returns:
        Those of the training images and of the test images, ``[N]``.

    Raises:
        UserError: if a matrix is missing, or a column is not one 1 among zeros.
    """
    import scipy.io  # only this set needs it

    names = ("target", "testtarget")
    with OneLine(path, "MATLAB's version 5 with matrices 'target' and 'testtarget'"), warnings.catch_warnings():
        warnings.simplefilter("error")  # scipy warns of what it repairs
        found = scipy.io.loadmat(path, variable_names=names)
        if missing := [name for name in names if name not in found]:
            raise unlabeled(f"{path} has no matrix {missing[0]!r}")
        for name in names:
            columns = found[name]  # [alphabets, N]
            whole = columns.dtype.kind in "bfiu" and bool(np.isin(columns, (0, 1)).all())
            if not whole or columns.ndim != 2 or not (columns.sum(axis=0) == 1).all():
                raise UserError(f"{path}: {name}: got other columns, expected one 1 among zeros in each")
    train, test = (found[name].argmax(axis=0) for name in names)
    return train, test


def _check_unpacked(path: Path) -> None:
    """Refuse a file of MATLAB's version 5 whose packed variables are larger than memory should hold."""
    with path.open("rb") as file:
        start = file.read(128)
        if not start.startswith(b"MATLAB 5.0 MAT-file") or start[126:] != b"IM":
            raise UserError(f"{path}: got a file of another kind, expected MATLAB's version 5 as it is distributed")
        total = 0
        while tag := file.read(8):
            kind, size = struct.unpack("<2I", tag)
            if kind != 15:  # not packed: no larger than it is in the file
                file.seek(size, io.SEEK_CUR)
                continue
            unpacker = zlib.decompressobj()
            packed = file.read(size)
            while packed and not unpacker.eof and total <= _CHARDATA:
                total += len(unpacker.decompress(packed, _CHUNK))
                packed = unpacker.unconsumed_tail
            if total > _CHARDATA:
                raise UserError(f"{path}: unpacks to more than {_CHARDATA} bytes, expected no more")


def _is_eight_bit(values: NDArray[Any]) -> bool:
    """Whether all values are multiples of 1/255, up to the rounding of single precision."""
    scaled = values * 255.0
    return bool(np.abs(scaled - scaled.round()).max() < 1e-3)


def _upright(columns: NDArray[Any], levels: int) -> NDArray[Any]:
    """[784, N] values from 0 to 1, pixels column after column -> [N, 28, 28] whole numbers, row after row."""
    dtype = np.uint8 if levels <= 256 else np.int32
    whole = np.rint(columns.T.astype(np.float64) * (levels - 1)).astype(dtype)
    return whole.reshape(-1, 28, 28).swapaxes(1, 2)


def read_cifar(data: bytes, classes: tuple[int, ...], name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The images and labels of one file of the binary version of CIFAR.

    A record is one label for each kind of class, and then the red, the green and the blue plane, each row after row.

    Arguments:
        data: content of the file.
        classes: number of classes of each label: (10,) for CIFAR-10, (20, 100) for CIFAR-100.
        name: of the file.

    Returns:
        Images ``[N, 32, 32, 3]``, and of each its last label ``[N]``, that of the finest classes.

    Raises:
        UserError: if the length does not fit, or if a label is too large, so that this is something else.
    """
    record = len(classes) + 3 * 32 * 32
    if not data or len(data) % record:
        raise UserError(f"{name}: holds {len(data)} bytes, expected a multiple of {record}")
    records = np.frombuffer(data, np.uint8).reshape(-1, record)
    for i, count in enumerate(classes):
        if (largest := int(records[:, i].max())) >= count:
            raise UserError(f"{name}: got label {largest}, expected 0 to {count - 1}, those of CIFAR-{classes[-1]}")
    images = records[:, len(classes) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, records[:, len(classes) - 1]


def read_members(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """The content of the members of a ``.tar.gz`` file that have these names, whatever their folders.

    Members are read in memory one after the other; nothing is written to disk, so their paths do not matter.

    Raises:
        UserError: if the archive is damaged, or unpacks to more than CIFAR does.
    """
    size_of(path)
    found: dict[str, bytes] = {}
    with OneLine(path, "a whole .tar.gz file"), unpacked(path) as file:
        stream = _Bounded(file, path)
        with tarfile.open(fileobj=cast(BinaryIO, stream), mode="r|") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name not in names or not member.isreg():
                    continue
                if name in found:
                    raise UserError(f"{path}: holds {name} twice, expected it once")
                found[name] = cast(BinaryIO, archive.extractfile(member)).read()
        while stream.read(_CHUNK):  # to the end of the file, where gzip checks its CRC
            pass
    return found


class _Bounded:
    """A stream that is refused once more has been read from it than CIFAR holds, be it header or content."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file = file
        self.path = path
        self.left = _CIFAR_ARCHIVE

    def read(self, size: int) -> bytes:
        data = self.file.read(min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise UserError(f"{self.path}: unpacks to more than {_CIFAR_ARCHIVE} bytes, expected no more")
        return data


def size_of(path: Path) -> int:
    """The size of a file in bytes; a pipe or a device, which would be waited for without end, is refused."""
    if not path.is_file():
        found = "something that is not a file" if path.exists() else "nothing"
        raise UserError(f"{path}: found {found}, expected a file")
    return path.stat().st_size


def unpacked(path: Path) -> BinaryIO:
    """Open a file to be read as bytes, unpacked if it ends in ``.gz``."""
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")
