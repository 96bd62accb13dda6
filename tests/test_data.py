"""Sets without files, the user's own arrays, splits, binarization and the protocol."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from davi.data import DataConfig, Images, check_same, load
from davi.data.embedded import photos, share_pixels
from davi.errors import UserError


def sha(images: Images, dtype: str = "u1") -> str:
    return hashlib.sha256(images.pixels.numpy().astype(dtype).tobytes()).hexdigest()


def saved(folder: Path, n: int = 40, name: str = "gray.npy") -> str:
    """A file of n random gray 4x3 images; returns its path."""
    path = folder / name
    np.save(path, np.random.default_rng(n).integers(0, 256, (n, 4, 3), dtype=np.uint8))
    return str(path)


def test_digits() -> None:
    from sklearn.datasets import load_digits

    data = load(DataConfig())
    assert data.validation is None
    assert (len(data.train), len(data.test), data.shape, data.levels) == (1400, 397, (1, 8, 8), 17)
    pixels = torch.cat([data.train.pixels, data.test.pixels])
    assert pixels.flatten(1).tolist() == load_digits().data.tolist()
    # Alpaydin and Kaynak's description: 1,797 images with counts 0 to 16; the first is a zero with this first row.
    assert pixels.sum().item() == 561718
    assert pixels[0, 0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]


def test_photos_share_no_pixel_between_train_and_test() -> None:
    """Where each patch was taken is found again in the photographs themselves, and marked there."""
    from sklearn.datasets import load_sample_images

    pictures = np.stack(load_sample_images().images)
    data = load(DataConfig(set="photos"))
    assert (len(data.train), len(data.test), data.shape, data.levels) == (5700, 130, (3, 32, 32), 256)
    corners = photos().corners
    assert corners is not None
    used = np.zeros(pictures.shape[:3], int)
    for (picture, top, left), patch in zip(corners.tolist(), data.train.pixels.numpy(), strict=True):
        place = (picture, slice(top, top + 32), slice(left, left + 32))
        assert np.array_equal(pictures[place], patch.transpose(1, 2, 0))
        used[place] = 1
    test_patches = iter(data.test.pixels.numpy())
    for left in range(480, 640, 32):
        for picture in range(2):
            for top in range(0, 427 - 31, 32):
                place = (picture, slice(top, top + 32), slice(left, left + 32))
                assert np.array_equal(pictures[place], next(test_patches).transpose(1, 2, 0))
                used[place] += 2
    assert set(np.unique(used)) == {0, 1, 2}  # 3 would be a pixel in both; above 3 one in two test patches
    assert (used == 2).sum() == 130 * 32 * 32


def test_photos_validation_shares_no_pixel_with_what_remains() -> None:
    whole = photos()
    data = load(DataConfig(set="photos", validation=0.1))
    assert data.validation is not None
    assert len(data.validation) == 570
    assert whole.corners is not None
    kept_out = np.zeros((2, 427, 640), bool)
    for picture, top, left in whole.corners[-570:].tolist():
        kept_out[picture, top : top + 32, left : left + 32] = True
    remaining = [
        i
        for i, (picture, top, left) in enumerate(whole.corners[:-570].tolist())
        if not kept_out[picture, top : top + 32, left : left + 32].any()
    ]
    assert torch.equal(data.train.pixels, whole.train.pixels[remaining])
    assert torch.equal(data.validation.pixels, whole.train.pixels[-570:])
    assert f"and {5130 - len(remaining)} that share pixels with them left out" in data.protocol["split"]
    with pytest.raises(UserError, match=r"data\.validation: got 5699, expected less"):
        load(DataConfig(set="photos", validation=5699))


def test_share_pixels_at_the_edges() -> None:
    origin = torch.tensor([[0, 50, 50]])
    some = torch.tensor([[0, 50, 50], [0, 81, 50], [0, 82, 50], [0, 19, 81], [0, 50, 18], [1, 50, 50]])
    assert share_pixels(some, origin).tolist() == [True, True, False, True, False, False]


def test_own_array_is_split_in_file_order(tmp_path: Path) -> None:
    path = saved(tmp_path, 45)
    array = np.load(path)
    data = load(DataConfig(set=path, validation=5))
    assert data.validation is not None
    assert np.array_equal(data.train.pixels[:, 0].numpy(), array[:36])
    assert np.array_equal(data.validation.pixels[:, 0].numpy(), array[36:41])
    assert np.array_equal(data.test.pixels[:, 0].numpy(), array[41:])
    assert data.protocol["counts"] == {"train": 36, "validation": 5, "test": 4}
    assert "the last tenth (4 images) for test" in data.protocol["split"]
    assert [i.name for i in (data.train, data.validation, data.test)] == [
        "gray.npy/train",
        "gray.npy/validation",
        "gray.npy/test",
    ]


def test_own_test_array(tmp_path: Path) -> None:
    path, other = saved(tmp_path, 20), saved(tmp_path, 7, "other.npy")
    data = load(DataConfig(set=path, test=other))
    assert (len(data.train), len(data.test)) == (20, 7)
    assert np.array_equal(data.test.pixels[:, 0].numpy(), np.load(other))
    np.save(tmp_path / "wide.npy", np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(UserError, match=r"data\.test: got .*wide\.npy .*\[1, 4, 4\].*expected .*\[1, 4, 3\]"):
        load(DataConfig(set=path, test=str(tmp_path / "wide.npy")))
    np.save(tmp_path / "deep.npy", np.zeros((3, 4, 3), np.uint16))
    with pytest.raises(UserError, match=r"65536 levels, expected .* 256 levels"):
        load(DataConfig(set=path, test=str(tmp_path / "deep.npy")))


def test_sixteen_bit_colors(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 65536, (10, 2, 3, 3), dtype=np.uint16)
    np.savez(tmp_path / "deep.npz", images=array)
    data = load(DataConfig(set=str(tmp_path / "deep.npz")))
    assert (data.levels, data.shape, data.train.pixels.dtype) == (65536, (3, 2, 3), torch.int32)
    assert (
        data.protocol["test_sha256"]
        == hashlib.sha256(array[9:].transpose(0, 3, 1, 2).astype("<i4").tobytes()).hexdigest()
    )


@pytest.mark.parametrize(
    ("kept", "n"), [(0, 0), (0.0, 0), (0.25, 9), (0.001, 1), (1, 1), (35, 35), (5.0, 5), (0.29, 10)]
)
def test_validation_fraction_or_count(tmp_path: Path, kept: float, n: int) -> None:
    data = load(DataConfig(set=saved(tmp_path), validation=kept))
    assert (len(data.validation) if data.validation else 0) == n
    assert len(data.train) == 36 - n


@pytest.mark.parametrize("kept", [-1, -0.1, 1.5, 36, 99, math.nan, math.inf, True, "5", None])
def test_validation_out_of_range(tmp_path: Path, kept: Any) -> None:
    with pytest.raises(UserError, match=r"data\.validation: got "):
        load(DataConfig(set=saved(tmp_path), validation=kept))


def test_static_draws_everything_once(tmp_path: Path) -> None:
    path = saved(tmp_path)
    gray = load(DataConfig(set=path))
    config = DataConfig(set=path, binarization="static", binarization_seed=3)
    data, again = load(config), load(config)
    assert data.levels == data.train.levels == 2
    assert torch.equal(data.train.pixels, again.train.pixels)
    assert torch.equal(data.test.pixels, again.test.pixels)
    other = load(DataConfig(set=path, binarization="static", binarization_seed=4))
    assert not torch.equal(data.train.pixels, other.train.pixels)
    assert not torch.equal(data.test.pixels, other.test.pixels)
    p = gray.train.pixels.double() / 255
    # The sum of independent draws: five standard deviations of its distribution.
    assert abs((data.train.pixels - p).sum()) < 5 * (p * (1 - p)).sum().sqrt()
    assert not data.train.pixels[gray.train.pixels == 0].any()
    assert data.train.pixels[gray.train.pixels == 255].all()


def test_dynamic_keeps_train_gray_and_draws_the_rest_once(tmp_path: Path) -> None:
    path = saved(tmp_path)
    gray = load(DataConfig(set=path, validation=6))
    static = load(DataConfig(set=path, validation=6, binarization="static", binarization_seed=3))
    data = load(DataConfig(set=path, validation=6, binarization="dynamic", binarization_seed=3))
    assert data.validation is not None
    assert static.validation is not None
    assert torch.equal(data.train.pixels, gray.train.pixels)
    assert (data.train.levels, data.levels, data.validation.levels) == (256, 2, 2)
    # One seed means one set of drawn images, whatever happens to the training images.
    assert torch.equal(data.test.pixels, static.test.pixels)
    assert torch.equal(data.validation.pixels, static.validation.pixels)


def test_draws_do_not_depend_on_the_validation_split(tmp_path: Path) -> None:
    path = saved(tmp_path)
    few, many = (load(DataConfig(set=path, binarization="static", validation=n)) for n in (2, 20))
    assert few.validation is not None
    assert many.validation is not None
    assert torch.equal(few.train.pixels[:16], many.train.pixels)
    assert torch.equal(few.validation.pixels, many.validation.pixels[-2:])
    assert torch.equal(few.test.pixels, many.test.pixels)


def test_train_and_test_are_drawn_from_different_streams(tmp_path: Path) -> None:
    for name, gray in (("train.npy", 127), ("test.npy", 128)):
        np.save(tmp_path / name, np.full((20, 8, 8), gray, np.uint8))
    paths = (str(tmp_path / name) for name in ("train.npy", "test.npy"))
    data = load(DataConfig(set=next(paths), test=next(paths), binarization="static"))
    # One stream would draw the same but for one value in 255; two agree in half of 1,280 values, five deviations of 18.
    agreeing = (data.train.pixels == data.test.pixels).sum().item()
    assert abs(agreeing - 640) < 90


def test_threshold(tmp_path: Path) -> None:
    path = saved(tmp_path)
    data = load(DataConfig(set=path, binarization="threshold", validation=4))
    whole = np.load(path) > 127
    assert np.array_equal(data.train.pixels[:, 0].numpy(), whole[:32])
    assert data.validation is not None
    assert np.array_equal(data.validation.pixels[:, 0].numpy(), whole[32:36])
    assert np.array_equal(data.test.pixels[:, 0].numpy(), whole[36:])
    assert load(DataConfig(binarization="threshold")).levels == 2  # seventeen levels as well


@pytest.mark.parametrize(
    ("binarization", "seed", "words", "levels"),
    [
        ("none", None, "values as stored", 17),
        ("static", 5, "each image drawn once, x ~ Bernoulli(value / 16), seed 5", 2),
        ("dynamic", 5, "each image drawn once, x ~ Bernoulli(value / 16), seed 5", 2),
        ("threshold", None, "1 where value / 16 > 0.5, else 0", 2),
    ],
)
def test_protocol_says_what_a_number_depends_on(binarization: Any, seed: int | None, words: str, levels: int) -> None:
    data = load(DataConfig(binarization=binarization, binarization_seed=5, flip="horizontal", validation=100))
    assert data.validation is not None
    assert json.loads(json.dumps(data.protocol)) == {
        "set": "digits",
        "split": "scikit-learn's 1797 digits in file order: the first 1400 for training, the last 397 for test; "
        "the last 100 of the 1400 training images for validation",
        "counts": {"train": 1300, "validation": 100, "test": 397},
        "shape": [1, 8, 8],
        "levels": levels,
        "source_levels": 17,
        "binarization": binarization,
        "binarization_seed": seed,
        "evaluated": words,
        "flip": "horizontal",
        "test_order": "file order",
        "train_sha256": sha(data.train),
        "validation_sha256": sha(data.validation),
        "test_sha256": sha(data.test),
    }


def test_other_images_are_told_apart() -> None:
    begun = load(DataConfig()).protocol
    check_same(begun, dict(begun), "ask")
    check_same({"split": "other words", "test_order": "none", "evaluated": "?"}, begun, "ask")  # words alone
    changed = {"test_sha256": "0" * 64, "train_sha256": "1" * 64, "set": "photos", "counts": {"test": 3}}
    for name, value in reversed(changed.items()):  # the most telling is named, whatever else differs
        now = {**begun, **dict(list(changed.items())[list(changed).index(name) :])}
        with pytest.raises(UserError, match=f"^data: got {name} ") as caught:
            check_same(begun, now, "ask")
        old, new = (str(v)[:12] + "..." if len(str(v)) == 64 else str(v) for v in (begun[name], value))
        assert str(caught.value) == f"data: got {name} {new}, expected {old} as when the run was begun; ask"
    with pytest.raises(UserError, match="got validation_sha256 abc, expected nothing as"):
        check_same(begun, {**begun, "validation_sha256": "abc"}, "ask")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"set": "no/where"}, r"data\.set: got 'no/where', which does not exist; expected a folder of images"),
        (
            {"set": "digitz"},
            r"data\.set: got 'digitz' \(did you mean digits\?\), expected digits, photos, binarized_mnist, mnist",
        ),
        ({"set": "?"}, r"data\.set: got '\?', expected digits"),
        ({"set": "~nobody-of-this-name/x.npy"}, r"~nobody-of-this-name/x\.npy: cannot be read"),
        ({"set": "x" * 5000 + ".npy"}, r"\.npy: cannot be read"),
        ({"set": "mnist", "root": "~nobody-of-this-name"}, r"~nobody-of-this-name/mnist: cannot be read"),
        ({"set": "mnist", "root": "x" * 5000}, "/mnist: cannot be read"),
        ({"set": "nowhere/x.npy"}, r"nowhere/x\.npy: found nothing"),
        ({"binarization": "fresh"}, r"data\.binarization: got 'fresh', expected one of none, static"),
        ({"flip": "vertical"}, r"data\.flip: got 'vertical'"),
        ({"random_crop": -1}, r"data\.random_crop: got -1, expected a number of pixels from 0 to 1024"),
        ({"random_crop": 8}, r"data\.random_crop: got 8 for images of 8 x 8 pixels, expected fewer than 8"),
        ({"binarization_seed": -1}, r"data\.binarization_seed: got -1"),
        ({"binarization_seed": 1.5}, r"data\.binarization_seed: got 1\.5"),
        ({"levels": 256}, r"data\.levels: got 256, expected 17, which digits has"),
        ({"levels": 1}, r"data\.levels: got 1, expected a whole number"),
        ({"test": "x.npy"}, r"data\.test: got 'x\.npy', expected nothing"),
        ({"set": "binarized_mnist", "binarization": "dynamic"}, "expected 'none': binarized_mnist is binary already"),
        ({"set": "binarized_mnist", "validation": 0.1}, "expected 0: binarized_mnist has its own"),
    ],
)
def test_options_refused_in_one_line(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        load(DataConfig(**options))
    assert "\n" not in str(caught.value)


def test_binary_array_is_not_binarized_again(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((10, 3, 3), bool))
    config: dict[str, Any] = {"set": str(tmp_path / "x.npy")}
    assert load(DataConfig(**config)).levels == 2
    for binarization in ("static", "dynamic", "threshold"):
        with pytest.raises(UserError, match="is binary already"):
            load(DataConfig(**config, binarization=binarization))


def test_one_image_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="got one image, expected at least 2"):
        load(DataConfig(set=saved(tmp_path, 1)))
    data = load(DataConfig(set=saved(tmp_path, 2)))
    assert (len(data.train), len(data.test)) == (1, 1)
