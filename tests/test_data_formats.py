"""Original distribution files: recognized, read whole, or refused in one line; and the named sets made of them."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from distributed import amat, idx, random, refused, split

from davi.data import DataConfig, load
from davi.data.formats import is_distribution, read_distribution
from davi.errors import UserError

ROOT = Path(os.environ.get("DAVI_DATA") or Path(__file__).parents[1].parent / "shared" / "data")


def real(name: str) -> pytest.MarkDecorator:
    """For tests on the real files of a set."""
    return pytest.mark.skipif(not (ROOT / name).is_dir(), reason=f"the files of {name} are not on this machine")


# IDX


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw"])
def test_idx_folder(tmp_path: Path, mark: str, packed: bool, place: str) -> None:
    train, test = random((5, 3, 4)), random((2, 3, 4), seed=1)
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    for stem, images in (("train", train), ("t10k", test)):
        path = folder / f"{stem}-images{mark}idx3-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(idx(images)) if packed else idx(images))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(b"labels are not read")
    assert is_distribution(tmp_path)
    source = split(tmp_path)
    assert source.train.levels == 256
    assert np.array_equal(source.train.pixels[:, 0].numpy(), train)
    assert np.array_equal(source.test.pixels[:, 0].numpy(), test)
    data = load(DataConfig(set=str(tmp_path), validation=1))
    assert data.protocol["counts"] == {"train": 4, "validation": 1, "test": 2}


def test_single_idx_file_and_another_for_test(tmp_path: Path) -> None:
    images = random((25, 3, 4), high=17)
    path, other = tmp_path / "emnist-letters-train-images-idx3-ubyte.gz", tmp_path / "unnamed"
    path.write_bytes(gzip.compress(idx(images)))
    other.write_bytes(idx(random((4, 3, 4), high=17, seed=1)))
    source = split(path, levels=17)
    assert source.train.levels == 17
    assert np.array_equal(source.train.pixels[:, 0].numpy(), images[:23])  # the last tenth, rounded down, is for test
    assert np.array_equal(source.test.pixels[:, 0].numpy(), images[23:])
    assert is_distribution(other)  # by its first bytes
    source = split(path, other)
    assert (len(source.train), len(source.test), source.test.levels) == (25, 4, 256)


def test_options_that_contradict_an_idx_file(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(idx(random((5, 8, 8))))
    refused(path, r"data\.levels: got 16, expected \d+ to 256", levels=16)
    refused(path, r"data\.levels: got 65536, expected \d+ to 256", levels=65536)
    (tmp_path / "narrow-images-idx3-ubyte").write_bytes(idx(random((5, 8, 7))))
    refused(path, r"data\.test: got .*narrow-images", test=tmp_path / "narrow-images-idx3-ubyte")
    (tmp_path / "a.png").write_bytes(b"")
    refused(path, r"data\.test: got '.*a\.png', expected a file in the form of", test=tmp_path / "a.png")
    path.write_bytes(idx(random((1, 8, 8))))
    refused(path, "got one image, expected at least 2")
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(random((1, 8, 8))))
    with pytest.raises(UserError, match=r"data\.test: got .*expected nothing: .* has its own test images"):
        split(tmp_path, path)


def broken_idx() -> dict[str, tuple[bytes, str]]:
    whole = idx(random((3, 4, 4)))
    return {
        "empty": (b"", "begins with 0x00000000"),
        "header cut": (whole[:10], "cannot be read"),
        "labels": (idx(random((3, 4, 4)), magic=0x801), "begins with 0x00000801, expected 0x00000803"),
        "short": (whole[:-1], "ends after 47 bytes|promises 48 bytes"),
        "long": (whole + b"\0", "goes on after 48 bytes"),
        "no image": (struct.pack(">4I", 0x803, 0, 28, 28), "expected at least one image"),
        "huge": (struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(99), "promises [0-9]{29} bytes"),
    }


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("fault", broken_idx())
def test_broken_idx(tmp_path: Path, fault: str, packed: bool) -> None:
    content, words = broken_idx()[fault]
    path = tmp_path / f"train-images-idx3-ubyte{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(content) if packed else content)
    refused(path, words)


def test_broken_gzip(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = gzip.compress(idx(random((99, 4, 4))))
    for content, words in (
        (whole[:-12], "cannot be read"),
        (whole[:-8] + bytes(4) + whole[-4:], "CRC"),
        (b"not gzip at all", "cannot be read"),
        (whole[:40] + bytes(200) + whole[240:], "cannot be read|CRC"),
    ):
        path.write_bytes(content)
        refused(path, words)


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    # 100 MB of zeros in 100 kB: more than 64 MiB, and more than 100 bytes from each.
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(struct.pack(">4I", 0x803, 10**4, 100, 100) + bytes(10**8), 1))
    assert path.stat().st_size < 10**6
    refused(path, "promises 100000000 bytes, expected no more than the file can hold")


# Rows of text


def test_amat(tmp_path: Path) -> None:
    sets = {part: random((i + 2, 28, 28), high=2, seed=i) for i, part in enumerate(("train", "valid", "test"))}
    for part, images in sets.items():
        (tmp_path / f"binarized_mnist_{part}.amat").write_bytes(amat(images))
    source = split(tmp_path)
    assert source.validation is not None
    for images, part in ((source.train, "train"), (source.validation, "valid"), (source.test, "test")):
        assert images.levels == 2
        assert np.array_equal(images.pixels[:, 0].numpy(), sets[part])
    assert "2 images, NOT the 50000 of the whole set" in source.split
    single = split(tmp_path / "binarized_mnist_test.amat", levels=2)
    assert (len(single.train), len(single.test)) == (3, 1)
    refused(tmp_path, r"data\.levels: got 256, expected 2", levels=256)
    (tmp_path / "binarized_mnist_valid.amat").unlink()
    refused(tmp_path, r"binarized_mnist_valid\.amat: found nothing, expected a file")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"0 1", b"0 2", "row 1: got '2', expected 784 values 0 or 1"),
        (b"0 1", b"0 a", "row 1: got 'a'"),
        (b"0 1", b"0 10", "row 1: got '10'"),
        (b"0 1", b"0 1 1", "row 1: got 785 values"),
        (b"0 1", b"0", "row 1: got 783 values"),
        (b"0 1", b"0 \xff", "row 1: got"),
        (b"\n", b" ", "row 1: got 1568 values"),
    ],
)
def test_broken_amat(tmp_path: Path, old: bytes, new: bytes, words: str) -> None:
    path = tmp_path / "x.amat"
    content = amat(random((2, 28, 28), high=2))
    path.write_bytes(content.replace(old, new, 1))
    refused(path, words)
    path.write_bytes(content[:-1000])
    refused(path, "row 2: got 284 values")
    path.write_bytes(b"\n\n")
    refused(path, "got no rows")


# What is a distribution, and which


def test_what_is_no_distribution(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "data_batch_1.bin").mkdir()
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "a.gz").write_bytes(b"\x1f\x8b\x08 cut")
    os.mkfifo(tmp_path / "train-images-idx3-ubyte")  # opening it would wait for a writer without end
    for path in (tmp_path, *tmp_path.iterdir(), tmp_path / "absent.amat"):
        assert not is_distribution(path)
    with pytest.raises(UserError, match="found something that is not a file"):
        read_distribution(tmp_path / "train-images-idx3-ubyte", None)
    with pytest.raises(UserError, match="got a file of another kind"):
        read_distribution(tmp_path / "a.png", None)
    with pytest.raises(UserError, match="holds no set"):
        read_distribution(tmp_path / "train", None)


def test_two_sets_in_a_folder(tmp_path: Path) -> None:
    for name in ("chardata.mat", "data_batch_1.bin"):
        (tmp_path / name).write_bytes(b"")
    refused(tmp_path, "holds OMNIGLOT, CIFAR-10, expected the files of one set")


# The named sets


@real("mnist")
@real("cifar10")
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_named_sets_from_their_original_files(tmp_path: Path, name: str) -> None:
    root = ROOT
    if name == "cifar10":  # the first of five parts stands for all
        root = tmp_path / "ours"
        (root / name).mkdir(parents=True)
        for file in ("train-0.webp", "test.webp"):
            (root / name / file).symlink_to(ROOT / name / file)
    ours = load(DataConfig(set=name, root=str(root)))
    folder = tmp_path / name
    folder.mkdir()
    for part, images in {"train": ours.train, "test": ours.test}.items():
        pixels = images.pixels.numpy()
        if name == "cifar10":
            rows = np.pad(pixels.reshape(len(pixels), -1), ((0, 0), (1, 0)))
            for i in range(len(rows) // 10000):
                stem = f"data_batch_{i + 1}" if part == "train" else "test_batch"
                (folder / f"{stem}.bin").write_bytes(rows[10000 * i : 10000 * (i + 1)].tobytes())
        else:
            stem = "train" if part == "train" else "t10k"
            (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels[:, 0]), 1))
    theirs = load(DataConfig(set=name, root=str(tmp_path)))
    same = ("set", "counts", "shape", "levels", "train_sha256", "validation_sha256", "test_sha256", "test_order")
    assert {key: theirs.protocol[key] for key in same} == {key: ours.protocol[key] for key in same}
    assert ("NOT the 50000" in theirs.protocol["split"]) == (name == "cifar10")


def test_another_set_under_a_name(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    for stem in ("train", "t10k"):
        (tmp_path / "mnist" / f"{stem}-images-idx3-ubyte").write_bytes(idx(random((2, 28, 27))))
    with pytest.raises(UserError, match=r"got images \[C, H, W\] = \[1, 28, 27\] with 256 levels, expected \[1, 28"):
        load(DataConfig(set="mnist", root=str(tmp_path)))
    for stem in ("train", "t10k"):
        (tmp_path / "mnist" / f"{stem}-images-idx3-ubyte").write_bytes(idx(random((2, 28, 28))))
    assert "2 images, NOT the 60000" in load(DataConfig(set="mnist", root=str(tmp_path))).protocol["split"]
