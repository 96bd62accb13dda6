"""The named sets: their files' forms on small imitations, and their facts on the real ones where they are at hand."""

import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from davi.data import DataConfig, Images, load
from davi.errors import UserError

ROOT = Path(os.environ.get("DAVI_DATA") or Path(__file__).parents[1].parent / "shared" / "data")


def real(name: str) -> pytest.MarkDecorator:
    """For tests on the real files of a set."""
    return pytest.mark.skipif(not (ROOT / name).is_dir(), reason=f"the files of {name} are not on this machine")


def md5_of_idx(images: Images) -> str:
    """MD5 of the original IDX file: big-endian magic 2051, count, rows, columns, then the values."""
    n, _, h, w = images.pixels.shape
    return hashlib.md5(struct.pack(">4i", 2051, n, h, w) + images.pixels.numpy().tobytes()).hexdigest()


def moments(images: Images) -> tuple[float, float]:
    """Mean and standard deviation of the values on [0, 1]."""
    counts = torch.bincount(images.pixels.flatten(), minlength=images.levels).double()
    values = torch.linspace(0, 1, images.levels, dtype=torch.float64)
    mean = (counts @ values / counts.sum()).item()
    return mean, (counts @ (values - mean).square() / counts.sum()).sqrt().item()


@real("mnist")
def test_mnist_is_the_original() -> None:
    data = load(DataConfig(set="mnist", root=str(ROOT), validation=10000))
    assert data.validation is not None
    train = Images(torch.cat([data.train.pixels, data.validation.pixels]), 256, "mnist")
    # Checksums of the unpacked files train-images-idx3-ubyte and t10k-images-idx3-ubyte.
    assert md5_of_idx(train) == "6bbc9ace898e44ae57da46a324031adb"
    assert md5_of_idx(data.test) == "2646ac647ad5339dbf082846283269ea"
    assert moments(train) == pytest.approx((0.13066, 0.30811), abs=5e-6)  # published to five decimals
    assert data.protocol["counts"] == {"train": 50000, "validation": 10000, "test": 10000}


@real("mnist")
def test_dynamic_mnist_follows_the_gray_values() -> None:
    gray = load(DataConfig(set="mnist", root=str(ROOT)))
    data = load(DataConfig(set="mnist", root=str(ROOT), binarization="dynamic", binarization_seed=1))
    p = gray.test.pixels.double() / 255
    difference = (data.test.pixels - p).sum(dim=(1, 2, 3))
    deviation = (p * (1 - p)).sum(dim=(1, 2, 3)).sqrt()
    # Standard scores of the images with enough gray in them: mean 0 and variance 1, within five standard errors each.
    score = (difference / deviation)[deviation > 1]
    n = len(score)
    assert n > 9000
    assert abs(score.mean().item()) < 5 / n**0.5
    assert abs(score.square().mean().item() - 1) < 5 * (2 / n) ** 0.5


@real("fashion_mnist")
def test_fashion_mnist_is_the_original() -> None:
    data = load(DataConfig(set="fashion_mnist", root=str(ROOT)))
    assert moments(data.train) == pytest.approx((0.28604, 0.35302), abs=5e-6)  # published to five decimals
    # Git's identifier of the original file: SHA-1 over "blob <size>", a zero byte, and the content.
    for images, blob in (
        (data.train, "ff2f5a96367a3c1656f09c93649f07143ff8b11e"),
        (data.test, "37bac79bc6f002d965f363e0b20514904504a4d9"),
    ):
        content = struct.pack(">4i", 2051, len(images), 28, 28) + images.pixels.numpy().tobytes()
        assert hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest() == blob


@real("omniglot28")
def test_omniglot28() -> None:
    data = load(DataConfig(set="omniglot28", root=str(ROOT)))
    assert (len(data.train), len(data.test), data.shape) == (19280, 13180, (1, 28, 28))
    assert moments(data.train)[0] == pytest.approx(0.0781, abs=5e-5)  # published to four decimals
    assert moments(data.test)[0] == pytest.approx(0.0844, abs=5e-5)
    cut = load(DataConfig(set="omniglot28", root=str(ROOT), binarization="threshold"))
    assert moments(cut.train)[0] == pytest.approx(0.0779, abs=5e-5)
    assert moments(cut.test)[0] == pytest.approx(0.0843, abs=5e-5)
    assert "not the scaling nor the split of the published numbers" in data.protocol["split"]


@real("mnist")
def test_binarized_mnist_agrees_with_mnist_sorted_by_class() -> None:
    fixed = load(DataConfig(set="binarized_mnist")).test.pixels
    order = np.argsort(np.load(ROOT / "mnist" / "test.npz")["labels"], kind="stable")
    gray = load(DataConfig(set="mnist", root=str(ROOT))).test.pixels[torch.from_numpy(order)]
    assert not fixed[gray == 0].any()
    assert fixed[gray == 255].all()


@real("cifar10")
def test_cifar10_is_the_original() -> None:
    data = load(DataConfig(set="cifar10", root=str(ROOT)))
    assert data.protocol["counts"] == {"train": 50000, "validation": 0, "test": 10000}
    assert (data.levels, data.shape) == (256, (3, 32, 32))
    # MD5 of the original data_batch_1.bin to data_batch_5.bin and test_batch.bin; a row of them is a label and then the
    # red, the green and the blue plane.
    labels = np.load(ROOT / "cifar10" / "labels.npz")
    md5 = []
    for images, label in ((data.train, labels["train"]), (data.test, labels["test"])):
        rows = np.concatenate([label[:, None], images.pixels.flatten(1).numpy()], axis=1)
        md5 += [hashlib.md5(rows[i : i + 10000].tobytes()).hexdigest() for i in range(0, len(rows), 10000)]
    assert md5 == [
        "5dd7e06a14cb22eb9f671a540d1b7c25",
        "5ea93a67294ea407fff1d09f752e9692",
        "942cd6a4bcdd0dd3c604fbe906cb4421",
        "ae636b3ba5c66a11e91e8cb52e771fcb",
        "53f37980c15c3d472c316c40844f3f0d",
        "803d5f7f4d78ea53de84dbe85f74fb6d",
    ]


def small_gray(root: Path, name: str = "mnist", train: str = "train", test: str = "test") -> None:
    (root / name).mkdir()
    for stem, n in ((train, 5), (test, 3)):
        images = np.random.default_rng(n).integers(0, 256, (n, 28, 28), dtype=np.uint8)
        np.savez(root / name / f"{stem}.npz", images=images, labels=np.zeros(n))


@pytest.mark.parametrize(
    ("name", "train", "test"), [("fashion_mnist", "train", "test"), ("omniglot28", "background", "evaluation")]
)
def test_gray_form_and_the_environment_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, train: str, test: str
) -> None:
    small_gray(tmp_path, name, train, test)
    monkeypatch.setenv("DAVI_DATA", str(tmp_path))
    data = load(DataConfig(set=name))
    assert np.array_equal(data.train.pixels[:, 0].numpy(), np.load(tmp_path / name / f"{train}.npz")["images"])
    assert np.array_equal(data.test.pixels[:, 0].numpy(), np.load(tmp_path / name / f"{test}.npz")["images"])
    # An imitation of a set must not be reported as the set.
    assert "5 images, NOT the" in data.protocol["split"]
    assert "3 images, NOT the" in data.protocol["split"]


def test_data_root_comes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_gray(tmp_path)
    monkeypatch.setenv("DAVI_DATA", str(tmp_path / "elsewhere"))
    assert len(load(DataConfig(set="mnist", root=str(tmp_path))).train) == 5
    with pytest.raises(UserError, match=r"DAVI_DATA: got .*elsewhere, found no folder .*mnist"):
        load(DataConfig(set="mnist"))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "omniglot28", "cifar10"])
def test_missing_directory_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("DAVI_DATA", raising=False)
    with pytest.raises(UserError, match=rf"data\.root: not given, expected a directory with {name}/ .* put there \w+"):
        load(DataConfig(set=name))
    with pytest.raises(UserError, match=rf"data\.root: got .*, found no folder .*{name}, expected the set's files"):
        load(DataConfig(set=name, root=str(tmp_path)))
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"data\.root: looked for .*{name}.*, found no such file \(give --data\.root"):
        load(DataConfig(set=name, root=str(tmp_path)))


def test_wrong_contents_under_a_set_name(tmp_path: Path) -> None:
    small_gray(tmp_path)
    path = tmp_path / "mnist" / "test.npz"
    np.savez(path, images=np.zeros((3, 28, 27), np.uint8))
    with pytest.raises(UserError, match=r"test\.npz: got uint8 \(3, 28, 27\), expected uint8 \[N, 28, 28\]"):
        load(DataConfig(set="mnist", root=str(tmp_path)))
    np.savez(path, images=np.zeros((3, 28, 28), np.int64))
    with pytest.raises(UserError, match=r"got int64"):
        load(DataConfig(set="mnist", root=str(tmp_path)))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"test\.npz: cannot be read"):
        load(DataConfig(set="mnist", root=str(tmp_path)))


def mosaic(path: Path, seed: int) -> np.ndarray:
    """Write a mosaic of flat tiles, tile n of color ``colors[n]``; returns the colors, ``[10000, 3]``."""
    colors = np.random.default_rng(seed).integers(0, 256, (10000, 3), dtype=np.uint8)
    tiles = colors.reshape(100, 100, 3).repeat(32, axis=0).repeat(32, axis=1)
    Image.fromarray(tiles).save(path, lossless=True, quality=0, method=0)
    return colors


def test_cifar10_form_with_some_shards(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10"
    folder.mkdir()
    colors = [mosaic(folder / f"{stem}.webp", i) for i, stem in enumerate(("train-1", "train-3", "test"))]
    data = load(DataConfig(set="cifar10", root=str(tmp_path)))
    for images, expected in ((data.train, np.concatenate(colors[:2])), (data.test, colors[2])):
        assert np.array_equal(images.pixels[:, :, 0, 0].numpy(), expected)
        assert np.array_equal(images.pixels[:, :, 31, 17].numpy(), expected)
    assert "train-1, train-3 (20000 images, NOT the 50000 of the whole set) for training" in data.protocol["split"]


def test_damaged_mosaics(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10"
    folder.mkdir()
    path = folder / "train-0.webp"
    config = DataConfig(set="cifar10", root=str(tmp_path))
    path.write_bytes(b"RIFF\x10\x00\x00\x00WEBPjunkjunk")
    with pytest.raises(UserError, match=r"train-0\.webp: cannot be read"):
        load(config)
    Image.new("RGB", (64, 32)).save(path, lossless=True)
    with pytest.raises(UserError, match=r"train-0\.webp: got RGB \(64, 32\), expected RGB \(3200, 3200\)"):
        load(config)
    mosaic(path, 0)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match=r"train-0\.webp: cannot be read"):
        load(config)
    Image.new("RGB", (3200, 3200)).save(path, format="PNG")
    with pytest.raises(UserError, match=r"train-0\.webp: cannot be read"):
        load(config)
