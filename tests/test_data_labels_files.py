"""Labels of named sets, of original files and of arrays: as the files have them, or refused in one line."""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from distributed import cifar, idx, idx_labels, random, tar_gz
from PIL import Image
from with_labels import of, refused, values

from davi.data import DataConfig, Images, labeled, select
from davi.data.labels import CIFAR10, CIFAR100, FASHION
from davi.errors import UserError

Array = np.ndarray
ROOT = Path(os.environ.get("DAVI_DATA") or Path(__file__).parents[1].parent / "shared" / "data")


def real(name: str) -> pytest.MarkDecorator:
    """For tests on the real files of a set."""
    return pytest.mark.skipif(not (ROOT / name).is_dir(), reason=f"the files of {name} are not on this machine")


# Named sets


@real("mnist")
def test_mnist() -> None:
    sets = of("mnist", root=ROOT, validation=10_000)
    assert values(sets.train)[:5] == [5, 0, 4, 1, 9]
    assert values(sets.train) + values(sets.validation) == np.load(ROOT / "mnist" / "train.npz")["labels"].tolist()
    assert values(sets.test) == np.load(ROOT / "mnist" / "test.npz")["labels"].tolist()
    assert sets.classes == tuple("0123456789")


@real("fashion_mnist")
def test_fashion_mnist() -> None:
    sets = of("fashion_mnist", root=ROOT)
    assert [sets.classes[label] for label in values(sets.train)[:3]] == ["Ankle boot", "T-shirt/top", "T-shirt/top"]
    assert values(sets.test) == np.load(ROOT / "fashion_mnist" / "test.npz")["labels"].tolist()


@real("omniglot28")
def test_omniglot28() -> None:
    sets = of("omniglot28", root=ROOT)
    for images, stem in ((sets.train, "background"), (sets.test, "evaluation")):
        assert [int(images.classes[label]) for label in values(images)] == (
            np.load(ROOT / "omniglot28" / f"{stem}.npz")["labels"].tolist()
        )
    assert len(sets.classes) == 964 + 659  # characters, published
    assert not set(values(sets.train)) & set(values(sets.test))


@real("cifar10")
def test_cifar10() -> None:
    sets, known = of("cifar10", root=ROOT), np.load(ROOT / "cifar10" / "labels.npz")
    assert values(sets.train)[:5] == [6, 9, 9, 4, 1]
    assert (values(sets.train), values(sets.test)) == (known["train"].tolist(), known["test"].tolist())
    assert sets.classes == tuple(known["classes"])


def test_the_shards_of_cifar10_that_are_there(tmp_path: Path) -> None:
    folder, rng = tmp_path / "cifar10", np.random.default_rng(0)
    folder.mkdir()
    for stem in ("train-1", "train-3", "test"):
        Image.new("RGB", (3200, 3200)).save(folder / f"{stem}.webp", lossless=True, quality=0, method=0)
    refused(r"data\.root: looked for .*labels\.npz, found no such file", "cifar10", root=tmp_path)
    train, test = rng.integers(0, 10, 50_000), rng.integers(0, 10, 10_000)
    np.savez(folder / "labels.npz", train=train, test=test)
    sets = of("cifar10", root=tmp_path)
    assert values(sets.train) == [*train[10_000:20_000], *train[30_000:40_000]]
    assert values(sets.test) == test.tolist()
    np.savez(folder / "labels.npz", train=train[:35_000], test=test)
    refused(r"labels\.npz: got labels \[15000\], expected \[20000\]", "cifar10", root=tmp_path)
    np.savez(folder / "labels.npz", train=train)
    refused(r"data\.labels: got true, expected false: .*labels\.npz has no array 'test'", "cifar10", root=tmp_path)


def gray(root: Path, name: str, labels: object, train: str = "train", test: str = "test") -> None:
    (root / name).mkdir(exist_ok=True)
    for stem in (train, test):
        beside = {} if labels is None else {"labels": labels}
        np.savez(root / name / f"{stem}.npz", images=random((3, 28, 28)), **beside)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (None, r"data\.labels: got true, expected false: .*train\.npz has no labels"),
        (np.array([0, 1]), r"train\.npz: got labels \[2\], expected \[3\], one for each image"),
        (np.array([[0, 1, 2]]), r"train\.npz: got labels \[1, 3\]"),
        (np.array([0, 1, 10]), r"train\.npz: got label 10, expected 0 to 9"),
        (np.array([0, -1, 9]), r"train\.npz: got label -1, expected 0 to 9"),
        (np.zeros(3), r"train\.npz: got float64, expected whole numbers"),
    ],
)
def test_labels_that_do_not_fit_a_named_set(tmp_path: Path, labels: object, match: str) -> None:
    gray(tmp_path, "mnist", labels)
    refused(match, "mnist", root=tmp_path)
    assert of("mnist", labels=False, root=tmp_path).classes == ()  # they are not looked at


def test_characters_of_omniglot_are_numbered_from_one(tmp_path: Path) -> None:
    gray(tmp_path, "omniglot28", np.array([1, 1623, 2]), "background", "evaluation")
    assert values(of("omniglot28", root=tmp_path).train) == [0, 1622, 1]
    gray(tmp_path, "omniglot28", np.array([1, 0, 2]), "background", "evaluation")
    refused("got label 0, expected 1 to 1623", "omniglot28", root=tmp_path)


# Original files


def write_idx(folder: Path, labels: Sequence[Sequence[int]], packed: bool = False, mark: str = "-") -> None:
    """MNIST's four files, images of 28 x 28."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (stem, each) in enumerate(zip(("train", "t10k"), labels, strict=True)):
        for kind, number, content in (
            ("images", 3, idx(random((len(each), 28, 28), seed=seed))),
            ("labels", 1, idx_labels(np.array(each))),
        ):
            path = folder / f"{stem}-{kind}{mark}idx{number}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("packed", [True, False])
def test_idx_files(tmp_path: Path, packed: bool, mark: str) -> None:
    write_idx(tmp_path / "raw", [[5, 0, 4, 1, 9], [7, 2, 1]], packed, mark)
    sets = of(tmp_path)
    assert (values(sets.train), values(sets.test)) == ([5, 0, 4, 1, 9], [7, 2, 1])
    assert sets.classes == tuple("0123456789")  # also for the test images, the largest label of which is 7
    single = next((tmp_path / "raw").glob("train-images*"))
    assert values(of(single, test_fraction=0.4).test) == [1, 9]
    other = next((tmp_path / "raw").glob("t10k-images*"))
    refused("has its own test images", tmp_path, test=str(other))
    other.with_name(other.name.replace("images", "labels").replace("idx3", "idx1")).unlink()
    refused(rf"data\.labels: got true, expected false: found neither t10k-labels{mark}idx1-ubyte nor", tmp_path)


def test_idx_files_beside_each_other(tmp_path: Path) -> None:
    """Classes that are numbers go up to the largest label of either file."""
    write_idx(tmp_path, [[0, 1, 2], [4, 3]])
    names = [str(tmp_path / f"{stem}-images-idx3-ubyte") for stem in ("train", "t10k")]
    for (one, other), labels in ((names, [4, 3]), (names[::-1], [0, 1, 2])):
        sets = of(one, test=other)
        assert values(sets.test) == labels
        assert sets.classes == tuple("01234")
    (tmp_path / "x-images-idx3-ubyte").write_bytes(idx(random((9, 4, 4))))
    refused("found neither x-labels-idx1-ubyte nor", tmp_path / "x-images-idx3-ubyte")
    (tmp_path / "x-idx3-ubyte").write_bytes(idx(random((9, 4, 4))))
    refused(r"no labels are known of .*x-idx3-ubyte, which is not called", tmp_path / "x-idx3-ubyte")


def test_named_originals_have_named_classes(tmp_path: Path) -> None:
    write_idx(tmp_path / "fashion_mnist", [[9, 0], [1, 2]])
    sets = of("fashion_mnist", root=tmp_path)
    assert sets.classes == FASHION
    assert (values(sets.train), values(sets.test)) == ([9, 0], [1, 2])
    write_idx(tmp_path / "mnist", [[3, 2], [11, 2]])
    refused("got label 11, expected 0 to 9", "mnist", root=tmp_path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "begins with 0x00000000, expected 0x00000801, an IDX file of labels"),
        (idx_labels(np.arange(3), 0x803), "begins with 0x00000803"),
        (idx_labels(np.arange(3))[:-1], "promises 3 bytes|ends after 2 bytes"),
        (idx_labels(np.arange(3))[:6], "cannot be read"),
        (idx_labels(np.arange(3)) + b"\0", "goes on after 3 bytes"),
        (idx_labels(np.arange(2)), r"got labels \[2\], expected \[3\]"),
        (idx_labels(np.arange(0)), "expected at least one label"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_broken_idx_labels(tmp_path: Path, content: bytes, match: str, packed: bool) -> None:
    write_idx(tmp_path, [[0, 1, 2], [0, 1]], packed)
    path = next(tmp_path.glob("train-labels*"))
    path.write_bytes(gzip.compress(content) if packed else content)
    refused(rf"{path.name}: .*({match})", tmp_path)


def test_cifar_originals(tmp_path: Path) -> None:
    for name, content in (
        ("data_batch_1", cifar(random((3, 32, 32, 3)))),
        ("test_batch", cifar(random((2, 32, 32, 3)))),
    ):
        (tmp_path / f"{name}.bin").write_bytes(content)
    sets = of(tmp_path)
    assert (values(sets.train), values(sets.test), sets.classes) == ([0, 1, 2], [0, 1], CIFAR10)
    assert values(of(tmp_path / "data_batch_1.bin").train) == [0, 1]
    fine = random((2, 32, 32, 3))
    members = {"train.bin": cifar(fine, (20, 100)), "test.bin": b"\x13\x63" + cifar(fine[:1], (20, 100))[2:]}
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(tar_gz(members))
    sets = of(tmp_path / "cifar-100-binary.tar.gz")
    assert (values(sets.train), values(sets.test), sets.classes) == ([0, 1], [99], CIFAR100)
    assert (len(CIFAR100), list(CIFAR100)) == (100, sorted(set(CIFAR100)))


def write_chardata(path: Path, **targets: Array) -> None:
    scipy.io.savemat(path, {"data": np.zeros((784, 4)), "testdata": np.ones((784, 2)), **targets})


def test_alphabets_of_chardata(tmp_path: Path) -> None:
    path, alphabets = tmp_path / "chardata.mat", np.eye(50)
    train, test = [49, 3, 3, 0], [7, 1]
    write_chardata(path, target=alphabets[:, train], testtarget=alphabets[:, test])
    for given in (path, tmp_path):
        sets = of(given)
        assert (values(sets.train), values(sets.test), len(sets.classes)) == (train, test, 50)
    write_chardata(path, target=alphabets[:, train])
    refused(r"data\.labels: .*chardata\.mat has no matrix 'testtarget'", path)
    write_chardata(path, target=alphabets[:, train[:3]], testtarget=alphabets[:, test])
    refused(r"chardata\.mat: got labels \[3\], expected \[4\]", path)
    for wrong in (
        alphabets[:, train] * 2,
        alphabets[:, train] + alphabets[:, train[::-1]],
        alphabets[:, train] * np.nan,
    ):
        write_chardata(path, target=wrong, testtarget=alphabets[:, test])
        refused(r"chardata\.mat: target: got other columns, expected one 1 among zeros", path)
    assert of(path, labels=False).classes == ()


# Arrays


@pytest.mark.parametrize("key", ["labels", "y"])
def test_arrays(tmp_path: Path, key: str) -> None:
    images, labels = random((20, 8, 8)), np.arange(20) % 4
    np.savez(tmp_path / "a.npz", images=images, **{key: labels})
    sets = of(tmp_path / "a.npz", validation=3)
    assert [values(part) for part in (sets.train, sets.validation, sets.test)] == [
        labels[:15].tolist(),
        labels[15:18].tolist(),
        labels[18:].tolist(),
    ]
    # The copy of a test image is left out with its label.
    np.savez(tmp_path / "b.npz", images=images[[6, 1]], **{key: [5, 1]})
    sets = of(tmp_path / "a.npz", test=str(tmp_path / "b.npz"))
    assert values(sets.train) == [int(label) for i, label in enumerate(labels) if i not in (6, 1)]
    assert (values(sets.test), sets.classes) == ([5, 1], tuple("012345"))
    np.savez(tmp_path / "b.npz", images=images[[6, 1]])
    refused(
        r"data\.labels: got true, expected false: .*b\.npz has no labels", tmp_path / "a.npz", test=f"{tmp_path}/b.npz"
    )
    np.save(tmp_path / "a.npy", images)
    refused(r"data\.labels: got true, expected false: .*a\.npy has no labels", tmp_path / "a.npy")


def test_broken_labels_of_arrays(tmp_path: Path) -> None:
    path, images = tmp_path / "a.npz", random((20, 8, 8))
    for labels, match in (
        (np.arange(19), r"a\.npz: got labels \[19\], expected \[20\]"),
        (np.arange(20) - 1, r"a\.npz: got label -1"),
        (np.arange(20) + 2**40, r"a\.npz: got label \d+, expected 0 to 65535"),
        (np.array(["a"] * 20), r"a\.npz: got str\d+, expected whole numbers"),
        (np.array([None] * 20), "pickled Python objects, which are never opened"),
    ):
        np.savez(path, images=images, labels=labels)
        refused(match, path)
    np.savez(path, images=images, labels=np.arange(20))
    content = bytearray(path.read_bytes())
    at = content.rindex(b"\x93NUMPY") + 128  # within the labels' values, whose CRC then does not fit
    content[at] ^= 1
    path.write_bytes(content)
    refused(r"a\.npz: cannot be read", path)


@pytest.mark.parametrize("name", ["photos", "binarized_mnist"])
def test_sets_without_labels(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    for stem in ("train", "valid", "test"):
        np.savez(tmp_path / name / f"{stem}.npz", images_packed=random((2, 98)))
    options = {} if name == "photos" else {"root": tmp_path}
    refused(
        rf"data\.labels: got true, expected false: {name} has no labels; sets that have them are MNIST", name, **options
    )
    with pytest.raises(UserError, match=f"{name} has no labels"):
        select(DataConfig(name, labels=True, root=None if name == "photos" else str(tmp_path)), "all")


def test_labels_for_images_of_ones_own() -> None:
    images = Images(torch.zeros(3, 1, 1, 1, dtype=torch.uint8), 2, "x")
    assert values(labeled(images, np.array([2, 0, 1]), None, "x")) == [2, 0, 1]
    assert labeled(images, np.array([1, 0, 1]), ("a", "b", "c"), "x").classes == ("a", "b", "c")
