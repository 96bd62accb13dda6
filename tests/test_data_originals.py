"""OMNIGLOT's ``chardata.mat`` and CIFAR's binary version: read whole, or refused in one line."""

from __future__ import annotations

import gzip
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from distributed import cifar, random, refused, split, tar_gz, write_chardata

from davi.data import originals
from davi.errors import UserError

# MATLAB


@pytest.mark.parametrize("compress", [True, False])
def test_chardata_is_stored_column_after_column(tmp_path: Path, compress: bool) -> None:
    train, test = random((5, 28, 28)), random((3, 28, 28), seed=1)
    write_chardata(tmp_path / "chardata.mat", train / 255, test / 255, compress)
    for path in (tmp_path, tmp_path / "chardata.mat"):
        source = split(path)
        assert source.train.levels == 256
        assert np.array_equal(source.train.pixels[:, 0].numpy(), train)
        assert np.array_equal(source.test.pixels[:, 0].numpy(), test)
    assert "5 images, NOT the 24345" in source.split
    # The same orientation as the authors' own way of reading the file.
    columns = scipy.io.loadmat(tmp_path / "chardata.mat")["data"]
    theirs = columns.T.reshape(-1, 28, 28).reshape(-1, 784, order="F").reshape(-1, 28, 28)
    assert np.array_equal(np.rint(theirs * 255), train)
    refused(tmp_path / "chardata.mat", r"data\.test: got .*has its own test images", test=tmp_path)


def test_levels_of_chardata(tmp_path: Path) -> None:
    path = tmp_path / "chardata.mat"
    gray = np.random.default_rng(0).random((4, 28, 28))
    write_chardata(path, gray, gray[:1])
    source = split(path)
    assert source.train.levels == 65536
    # Rounding to a multiple of 1/65535 moves a value by half of that at most.
    assert np.abs(source.train.pixels[:, 0].numpy() / 65535 - gray).max() <= 0.5 / 65535 + 1e-12
    assert "rounded to multiples of 1/65535" in source.split
    assert np.array_equal(split(path, levels=16).train.pixels[:, 0].numpy(), np.rint(gray * 15))
    write_chardata(path, (random((4, 28, 28)) / 255).astype(np.float32), random((1, 28, 28)).astype(np.float32) / 255)
    assert split(path).train.levels == 256  # single precision is near enough


def broken_mat(path: Path) -> dict[str, Callable[[], None]]:
    good = np.zeros((784, 3))

    def write(**variables: object) -> Callable[[], None]:
        return lambda: scipy.io.savemat(path, variables)

    def cut() -> None:
        write_chardata(path, *np.random.default_rng(0).random((2, 3, 28, 28)))
        path.write_bytes(path.read_bytes()[:-2000])  # in the second of them

    return {
        "found nothing|data: got nothing": write(testdata=good),
        "testdata: got nothing": write(data=good),
        r"data: got double \(783, 3\), expected double \(784, N\)": write(data=good[1:], testdata=good),
        r"data: got uint8": write(data=good.astype(np.uint8), testdata=good),
        r"data: got cell": write(data=np.array([[1, "a"]], dtype=object), testdata=good),
        "expected values from 0 to 1": write(data=good + 2, testdata=good),
        "got float64 nan to nan": write(data=good * np.nan, testdata=good),
        "got complex|expected": write(data=good * 1j, testdata=good),
        "got a file of another kind": lambda: path.write_bytes(b"MATLAB 7.3 MAT-file" + bytes(500)) and None,
        "cannot be read": cut,
    }


@pytest.mark.parametrize("words", broken_mat(Path()))
def test_broken_mat(tmp_path: Path, words: str) -> None:
    path = tmp_path / "chardata.mat"
    broken_mat(path)[words]()
    refused(path, words)


def test_a_packed_variable_is_not_unpacked_beyond_all_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A variable of 33 MiB of zeros in 33 kB; the limit is lowered to spare the test the gigabyte that is allowed.
    monkeypatch.setattr(originals, "_CHARDATA", 2**25)
    path = tmp_path / "chardata.mat"
    packed = zlib.compress(bytes(2**25 + 2**20))
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + struct.pack("<2I", 15, len(packed)) + packed)
    refused(path, "unpacks to more than 33554432 bytes")


# CIFAR


@pytest.mark.parametrize("place", ["", "cifar-10-batches-bin"])
def test_cifar10_folder(tmp_path: Path, place: str) -> None:
    first, second, test = random((3, 32, 32, 3)), random((2, 32, 32, 3), seed=1), random((2, 32, 32, 3), seed=2)
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    for name, images in (("data_batch_2", first), ("data_batch_5", second), ("test_batch", test)):
        (folder / f"{name}.bin").write_bytes(cifar(images))
    source = split(tmp_path)
    assert np.array_equal(source.train.pixels.numpy(), np.concatenate([first, second]).transpose(0, 3, 1, 2))
    assert np.array_equal(source.test.pixels.numpy(), test.transpose(0, 3, 1, 2))
    assert "data_batch_2.bin, data_batch_5.bin (5 images, NOT the 50000 of the whole set)" in source.split
    single = split(folder / "data_batch_2.bin", folder / "test_batch.bin", 256)
    assert (len(single.train), len(single.test)) == (3, 2)
    (folder / "test_batch.bin").unlink()
    with pytest.raises(UserError, match=r"found no test_batch\.bin, expected it beside"):
        split(tmp_path)


@pytest.mark.parametrize("set_name", ["cifar-10", "cifar-100"])
def test_archives(tmp_path: Path, set_name: str) -> None:
    train, test = random((3, 32, 32, 3)), random((2, 32, 32, 3), seed=2)
    classes, names = ((10,), ("data_batch_1.bin", "test_batch.bin")), ((20, 100), ("train.bin", "test.bin"))
    labels, (train_name, test_name) = classes if set_name == "cifar-10" else names
    path = tmp_path / f"{set_name}-binary.tar.gz"
    members = {
        "../../outside.html": b"not written anywhere",
        f"some/folder/{train_name}": cifar(train, labels),
        f"/absolute/{test_name}": cifar(test, labels),
    }
    path.write_bytes(tar_gz(members))
    for given in (path, tmp_path):
        source = split(given)
        assert np.array_equal(source.train.pixels.numpy(), train.transpose(0, 3, 1, 2))
        assert np.array_equal(source.test.pixels.numpy(), test.transpose(0, 3, 1, 2))
    assert sorted(tmp_path.iterdir()) == [path]
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    refused(path, "cannot be read")
    path.write_bytes(whole[:-8] + bytes(8))
    refused(path, "CRC")
    path.write_bytes(tar_gz({train_name: cifar(train, labels)}))
    refused(path, f"holds only {train_name}, expected {train_name} and {test_name}")
    path.write_bytes(tar_gz({"a/train.bin": b"", "b/train.bin": b""}))
    refused(path, r"holds train\.bin twice")
    path.write_bytes(tar_gz({"readme": b""}))
    refused(path, "holds neither, expected the binary version")


def test_an_archive_with_a_member_out_of_all_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(originals, "_CIFAR_ARCHIVE", 2**24)
    path = tmp_path / "cifar-10-binary.tar.gz"
    info = tarfile.TarInfo("data_batch_1.bin")
    info.size = 2**33
    path.write_bytes(gzip.compress(info.tobuf() + bytes(2**24), 1))
    refused(path, "unpacks to more than 16777216 bytes")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("data_batch_1.bin", b"", "holds 0 bytes, expected a multiple of 3073"),
        ("data_batch_1.bin", bytes(3074), "holds 3074 bytes, expected a multiple of 3073"),
        ("train.bin", bytes(3073), "holds 3073 bytes, expected a multiple of 3074"),
        ("test_batch.bin", b"\x0a" + bytes(3072), "got label 10, expected 0 to 9, those of CIFAR-10"),
        ("test.bin", b"\x00\x64" + bytes(3072), "got label 100, expected 0 to 99, those of CIFAR-100"),
    ],
)
def test_broken_cifar(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, words)


class Payload:
    """An object whose unpickling leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.mark,)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "name", ["data_batch_1", "cifar-10-batches-py/data_batch_3", "cifar-100-python/meta", "cifar-10-python.tar.gz"]
)
def test_pickles_are_never_opened(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "mark"
    names = ("train", "test", "meta") if "100" in name else (Path(name).name,)
    path = tmp_path / "set" / name
    path.parent.mkdir(parents=True)
    for each in names:
        (path.parent / each).write_bytes(pickle.dumps(Payload(mark)))
    refused(
        tmp_path / "set", "pickles, which are never opened; expected the binary version"
    ) if "/" not in name else None
    with pytest.raises(UserError, match="pickles, which are never opened; expected the binary version"):
        split(tmp_path / "set")
    assert not mark.exists()
