"""Baselines against counts made by hand, another library's smoothing, and files that are read back."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.naive_bayes import CategoricalNB

from davi.data import DataConfig, Images, evenly, load
from davi.errors import UserError
from davi.evaluation import baseline_cache
from davi.evaluation.baseline_cache import cached_baselines
from davi.evaluation.baselines import Baseline, baselines, independent_pixels, mosaic, picture, png, webp


def images(values: list[list[int]], levels: int, name: str = "toy/test") -> Images:
    """Images of one row."""
    dtype = torch.uint8 if levels <= 256 else torch.int32
    return Images(torch.tensor(values, dtype=dtype)[:, None, None, :], levels, name)


def noise(shape: tuple[int, ...], levels: int) -> Images:
    dtype = torch.uint8 if levels <= 256 else torch.int32
    return Images(torch.randint(levels, shape).to(dtype), levels, "noise/test")


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file for each image, however small."""
    monkeypatch.setattr("davi.evaluation.baselines._SMALL_BYTES", 0)


def read_back(file: io.BytesIO, channels: int) -> np.ndarray:
    """Values of a file, ``[C, H, W]``."""
    with Image.open(file) as image:
        values = np.asarray(image)
    return values[None].astype(np.int64) if values.ndim == 2 else values.transpose(2, 0, 1)[:channels].astype(np.int64)


def test_independent_pixels_by_hand() -> None:
    """Counts of levels 0, 1, 2: left 2, 1, 0 and right 0, 0, 3; with one added to each over 6."""
    train = images([[0, 2], [0, 2], [1, 2]], 3, "toy/train")
    result = independent_pixels(train, images([[0, 2], [2, 0]], 3))
    first = -math.log2(3 / 6 * 4 / 6) / 2
    second = -math.log2(1 / 6 * 1 / 6) / 2
    assert result.bits_per_dim == pytest.approx((first + second) / 2, rel=1e-14)
    # Of two values: their standard deviation (n - 1) is |a - b| / sqrt(2), over sqrt(2) images.
    assert result.standard_error == pytest.approx(abs(first - second) / 2, rel=1e-14)
    assert "counts of 3 training images" in result.note


def test_gray_training_images_count_by_their_expectation() -> None:
    """Gray values 255, 51 and 0 of 255: 1.2 ones are expected in 3 draws; p(1) = 2.2 / 5."""
    result = independent_pixels(images([[255], [51], [0]], 256, "toy/train"), images([[1], [0], [0]], 2))
    expected = -(math.log2(2.2 / 5) + 2 * math.log2(2.8 / 5)) / 3
    assert result.bits_per_dim == pytest.approx(expected, rel=1e-14)
    assert "expected counts" in result.note


def test_binary_training_images_are_counted() -> None:
    result = independent_pixels(images([[1], [1], [0]], 2, "toy/train"), images([[1]], 2))
    assert result.bits_per_dim == pytest.approx(-math.log2(3 / 5), rel=1e-14)
    assert result.standard_error is None  # a single image


def test_independent_pixels_of_the_digits() -> None:
    """The same smoothing in scikit-learn: naive Bayes with a single class. Its value was found elsewhere too: 2.40."""
    sets = load(DataConfig())
    train, test = (part.pixels.flatten(1).numpy() for part in (sets.train, sets.test))
    bayes = CategoricalNB(alpha=1.0, min_categories=17).fit(train, np.zeros(len(train)))
    nats = sum(bayes.feature_log_prob_[j][0][test[:, j]] for j in range(64))
    result = independent_pixels(sets.train, sets.test)
    assert result.bits_per_dim == pytest.approx(-nats.mean() / (64 * math.log(2)), rel=1e-12)
    assert result.bits_per_dim == pytest.approx(2.40, abs=0.005)


def test_counting_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = noise((30, 3, 5, 7), 17), noise((4, 3, 5, 7), 17)
    whole = independent_pixels(train, test)
    monkeypatch.setattr("davi.evaluation.baselines._ENTRIES", 30 * 8)  # 8 of 105 positions at a time
    parts = independent_pixels(train, test)
    assert parts.bits_per_dim == pytest.approx(whole.bits_per_dim, rel=1e-14)


def test_sixteen_bits() -> None:
    result = independent_pixels(images([[65535]], 65536, "toy/train"), images([[65535], [0]], 65536))
    assert result.bits_per_dim == pytest.approx(math.log2(65537) - 0.5, rel=1e-14)  # 2 / 65537 and 1 / 65537


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (images([[0, 1]], 3, "toy/train"), images([[0]], 3)),
        (images([[0]], 4, "toy/train"), images([[0]], 3)),
        (images([[0]], 2, "toy/train"), images([[0]], 3)),
    ],
)
def test_sets_that_do_not_belong_together(train: Images, test: Images) -> None:
    with pytest.raises(UserError, match=r"^toy/train: got images \[C, H, W\] = "):
        independent_pixels(train, test)


@pytest.mark.usefixtures("apart")
def test_the_smallest_png_has_67_bytes() -> None:
    """Signature 8, header 25, data 12 + 10, end 12: one bilevel pixel."""
    result = png(images([[1], [0]], 2))
    assert result.bits_per_dim == 8 * 67
    assert result.standard_error == 0


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize(
    ("shape", "levels", "mode"),
    [
        ((1, 5, 9), 2, "1"),
        ((1, 5, 9), 17, "L"),
        ((1, 5, 9), 256, "L"),
        ((1, 5, 9), 65536, "I;16"),
        ((2, 5, 9), 256, "LA"),
        ((3, 5, 9), 2, "RGB"),
        ((3, 5, 9), 256, "RGB"),
        ((4, 5, 9), 256, "RGBA"),
    ],
)
def test_png_is_lossless_and_counted_in_full(shape: tuple[int, int, int], levels: int, mode: str) -> None:
    test = noise((3, *shape), levels)
    lengths = []
    for values in test.pixels.numpy():
        image = picture(values, levels)
        assert image.mode == mode
        file = io.BytesIO()
        image.save(file, "PNG", optimize=True)
        assert np.array_equal(read_back(file, shape[0]), values)
        lengths.append(len(file.getvalue()))
    result = png(test)
    assert result.bits_per_dim == pytest.approx(8 * np.mean(lengths) / math.prod(shape), rel=1e-14)
    assert result.standard_error == pytest.approx(8 * np.std(lengths, ddof=1) / math.sqrt(3) / math.prod(shape))


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize(("channels", "levels"), [(1, 2), (1, 17), (3, 256), (4, 256)])
def test_webp_is_lossless(channels: int, levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    test = noise((2, channels, 6, 7), levels)
    if channels == 4:
        test.pixels[:, 3] = 0  # fully transparent: their colors are the first that a careless encoder drops
    saved: list[np.ndarray] = []
    original = Image.Image.save

    def spy(image: Image.Image, file: io.BytesIO, *args: object, **options: object) -> None:
        original(image, file, *args, **options)
        saved.append(read_back(io.BytesIO(file.getvalue()), channels))

    monkeypatch.setattr(Image.Image, "save", spy)
    result = webp(test)
    assert result.bits_per_dim is not None
    assert result.bits_per_dim > 0
    found = {values.tobytes() for values in saved}  # files are made side by side, in any order
    white = 255 if (channels, levels) == (1, 2) else 1  # two levels of one channel are black and white
    assert found == {(white * values.astype(np.int64)).tobytes() for values in test.pixels.numpy()}


def test_webp_beats_noise_only_where_there_is_structure() -> None:
    flat = Images(torch.full((1, 3, 64, 64), 7, dtype=torch.uint8), 256, "flat/test")
    for method in (png, webp):
        assert method(flat).bits_per_dim < 0.3
        assert method(noise((1, 3, 64, 64), 256)).bits_per_dim > 8  # uniform noise has 8 bits, and there are headers


@pytest.mark.parametrize(
    ("method", "channels", "levels"),
    [(png, 5, 256), (png, 3, 65536), (webp, 2, 256), (webp, 5, 256), (webp, 1, 65536)],
)
def test_what_a_format_does_not_hold(method: type, channels: int, levels: int) -> None:
    result = method(noise((2, channels, 4, 4), levels))
    assert isinstance(result, Baseline)
    assert (result.bits_per_dim, result.standard_error) == (None, None)
    assert f"does not hold {channels} channel" in result.note
    assert f"of {levels} levels, 4 x 4 pixels" in result.note


def test_without_webp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("davi.evaluation.baselines.features.check", lambda name: False)
    assert webp(noise((1, 1, 4, 4), 256)) == Baseline("lossless WebP", None, None, "Pillow was built without WebP")


def test_all_together() -> None:
    train, test, seen = noise((9, 1, 4, 4), 17), noise((3, 1, 4, 4), 17), list[tuple[int, int]]()
    found = baselines(train, test, lambda done, total: seen.append((done, total)))
    assert found == [independent_pixels(train, test), png(test), webp(test)]
    assert [baseline.name for baseline in found] == ["independent pixels", "PNG", "lossless WebP"]
    assert seen == [(1, 1)]  # one file for all of them


def test_of_very_many_images_some_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for 4 of 10 training images of 6 bytes."""
    train, test = noise((10, 1, 2, 3), 17), noise((4, 1, 2, 3), 17)
    expected = independent_pixels(evenly(train, 4), test)
    monkeypatch.setattr("davi.evaluation.baselines._COUNTED_BYTES", 4 * 6 + 5)
    found = independent_pixels(train, test)
    assert found.bits_per_dim == pytest.approx(expected.bits_per_dim, rel=1e-14)
    assert found.note.startswith("counts of 4 training images (4 of 10 images, spread evenly, seed 0) at each position")


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("method", [png, webp])
def test_of_very_many_images_some_are_put_into_files(
    method: Callable[[Images], Baseline], monkeypatch: pytest.MonkeyPatch
) -> None:
    test = noise((10, 1, 2, 3), 17)
    expected = method(evenly(test, 3))
    monkeypatch.setattr("davi.evaluation.baselines._FILED_VALUES", 3 * 6)
    found = method(test)
    assert (found.bits_per_dim, found.standard_error) == (expected.bits_per_dim, expected.standard_error)
    assert found.note.endswith("; 3 of 10 images, spread evenly, seed 0")


def test_a_memory_map_is_read_in_place(tmp_path: Path) -> None:
    """A set on the disk gives the numbers of the same set in memory."""
    stored = noise((30, 1, 5, 7), 17)
    np.save(tmp_path / "set.npy", stored.pixels.numpy())
    mapped = Images(torch.from_numpy(np.load(tmp_path / "set.npy", mmap_mode="c")), 17, stored.name)
    assert independent_pixels(mapped, mapped) == independent_pixels(stored, stored)
    assert png(mapped) == png(stored)


@pytest.mark.parametrize(("n", "shape"), [(7, (1, 3, 5)), (1, (3, 4, 4)), (12, (2, 2, 9)), (3, (1, 1, 40))])
def test_a_mosaic_holds_every_image_once(n: int, shape: tuple[int, int, int]) -> None:
    """Tile i is image i, row after row, and what is left over is zero; the whole is about as wide as high."""
    channels, height, width = shape
    images = np.random.default_rng(0).integers(1, 256, (n, *shape), dtype=np.uint8)
    whole = mosaic(images)
    columns = whole.shape[2] // width
    assert whole.shape == (channels, -(-n // columns) * height, columns * width)
    for i, image in enumerate(images):
        top, left = i // columns * height, i % columns * width
        assert np.array_equal(whole[:, top : top + height, left : left + width], image)
    assert (whole > 0).sum() == images.size
    assert max(whole.shape[1:]) <= 2 * min(whole.shape[1:]) + 2 * max(height, width)


@pytest.mark.parametrize("method", [png, webp])
def test_small_images_share_one_file(method: Callable[[Images], Baseline], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the digits the headers of 397 files outweigh the pixels; one file for all is what another method needs."""
    test = load(DataConfig()).test
    together = method(test)
    with Image.new("L", (1, 1)) as one:
        file = io.BytesIO()
        one.save(file, "PNG" if method is png else "WEBP")
    assert together.note.endswith(
        "one file for all 397 images, side by side, since each by itself would be mostly header"
    )
    assert together.standard_error is None
    monkeypatch.setattr("davi.evaluation.baselines._SMALL_BYTES", 0)
    headers = 8 * 0.5 * len(file.getvalue()) / 64  # bits/dim of half of the smallest file
    assert 1.0 < together.bits_per_dim < method(test).bits_per_dim - headers
    assert png(noise((2, 1, 32, 32), 256)).note.endswith("which weigh heavily on small images")  # a kilobyte each


def test_a_shared_file_is_lossless(monkeypatch: pytest.MonkeyPatch) -> None:
    test = noise((5, 1, 4, 6), 17)
    saved: list[np.ndarray] = []
    original = Image.Image.save

    def spy(image: Image.Image, file: io.BytesIO, *args: object, **options: object) -> None:
        original(image, file, *args, **options)
        saved.append(read_back(io.BytesIO(file.getvalue()), 1))

    monkeypatch.setattr(Image.Image, "save", spy)
    assert png(test).bits_per_dim is not None
    assert np.array_equal(saved[0], mosaic(test.pixels.numpy()))


def test_baselines_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for the same images; others, or a damaged file, are measured."""
    calls: list[str] = []

    def count(train: Images | None, test: Images, progress: object) -> list[Baseline]:
        calls.append(test.name)
        return baselines(train, test)

    monkeypatch.setattr(baseline_cache, "baselines", count)
    train, test = noise((9, 1, 4, 4), 17), noise((3, 1, 4, 4), 17)
    first = cached_baselines(train, test, tmp_path)
    assert cached_baselines(train, test, tmp_path) == first == baselines(train, test)
    assert len(calls) == 1
    assert cached_baselines(None, test, tmp_path)[0].bits_per_dim is None  # not the one with training images
    assert cached_baselines(train, train, tmp_path) != first
    assert len(calls) == 3
    for number, damaged in enumerate(("[{}]", "", "[" * 50000, '{"name"'), start=4):
        for path in (tmp_path / "baselines").iterdir():
            path.write_text(damaged, encoding="utf-8")
        assert cached_baselines(train, test, tmp_path) == first
        assert len(calls) == number


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "baselines").write_text("in the way", encoding="utf-8")
    train, test = noise((9, 1, 4, 4), 17), noise((3, 1, 4, 4), 17)
    assert cached_baselines(train, test, tmp_path) == baselines(train, test)
