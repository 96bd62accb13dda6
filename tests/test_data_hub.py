"""Sets in the form of Hugging Face's datasets, from parquet files written here; no test uses a network."""

from __future__ import annotations

import builtins
import io
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from davi.data import DataConfig, load
from davi.data.hub import read_hub
from davi.data.images import Source, Whole
from davi.data.sources import source_of
from davi.errors import UserError

datasets = pytest.importorskip("datasets", reason="needs the package datasets")
Array = np.ndarray


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a test must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def encoded(image: Array) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write(path: Path, rows: dict[str, list[Any]], kinds: dict[str, Any] | None = None) -> None:
    """A parquet file; its column ``image`` is of images unless other kinds are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = kinds or {"image": datasets.Image(), "label": datasets.Value("int64")}
    features = datasets.Features({name: kinds[name] for name in rows})
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    if not bars:
        datasets.enable_progress_bars()


def images(n: int, shape: tuple[int, ...] = (5, 4, 3), seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def rows(values: Array) -> dict[str, list[Any]]:
    return {"image": [encoded(image) for image in values], "label": list(range(len(values)))}


def refused(spec: str, cache: Path, match: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=match) as caught:
        read_hub(spec, cache)
    assert str(caught.value).startswith(spec)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # the library has its own ways to say it, which are silenced


def test_a_single_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    values = images(12)
    write(tmp_path / "set.parquet", rows(values))
    capfd.readouterr()
    source = source_of(DataConfig(set=f"hub:{tmp_path}/set.parquet", cache=str(tmp_path / "cache")))
    assert np.array_equal(source.train.pixels.numpy(), values[:11].transpose(0, 3, 1, 2))
    assert np.array_equal(source.test.pixels.numpy(), values[11:].transpose(0, 3, 1, 2))
    assert (source.train.levels, source.test_order) == (256, "row order")
    assert "the last tenth (1 images) for test" in source.split
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()  # as it was
    data = load(DataConfig(set=f"hub:{tmp_path}/set.parquet", cache=str(tmp_path / "cache"), validation=2))
    assert data.protocol["counts"] == {"train": 9, "validation": 2, "test": 1}


@pytest.mark.parametrize("form", ["data/{}-00000-of-00001.parquet", "{}/0.parquet"])
@pytest.mark.parametrize("validation", [None, "validation"])
def test_the_splits_of_a_folder(tmp_path: Path, form: str, validation: str | None) -> None:
    parts = {"train": images(4, (5, 4)), "test": images(3, (5, 4), 1)}
    if validation is not None:
        parts[validation] = images(2, (5, 4), 2)
    for name, values in parts.items():
        write(tmp_path / "set" / form.format(name), rows(values))
    source = read_hub(f"hub:{tmp_path}/set", tmp_path / "cache")
    assert isinstance(source, Source)
    assert np.array_equal(source.train.pixels[:, 0].numpy(), parts["train"])
    assert np.array_equal(source.test.pixels[:, 0].numpy(), parts["test"])
    assert (source.validation is None) == (validation is None)
    if source.validation is not None:
        assert np.array_equal(source.validation.pixels[:, 0].numpy(), parts["validation"])


def test_sixteen_bits(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (3, 4, 4), dtype=np.uint16)
    write(tmp_path / "set.parquet", {"image": [encoded(image) for image in values]})
    whole = read_hub(f"hub:{tmp_path}/set.parquet", tmp_path / "cache")
    assert isinstance(whole, Whole)
    assert whole.images.levels == 65536
    assert np.array_equal(whole.images.pixels[:, 0].numpy(), values)


def test_images_that_do_not_fit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, cache = tmp_path / "set.parquet", tmp_path / "cache"
    gray = [encoded(image) for image in images(2, (5, 4))]
    for other, words in (
        (
            encoded(images(1, (4, 5))[0]),
            r"row 2: got .* = \[4, 5, 1\] .*expected .*\[5, 4, 1\] .* to a folder",
        ),
        (encoded(images(1)[0]), r"row 2: got \[H, W, C\] = \[5, 4, 3\]"),
        (encoded(images(1, (5, 4, 4))[0]), "row 2: got a transparency"),
        ({"bytes": b"junk", "path": None}, "row 2: got something else, expected a PNG"),
        ({"bytes": gray[0]["bytes"][:-20], "path": None}, "row 2: cannot be read"),
        ({"bytes": None, "path": "/etc/hostname"}, "row 2: got no bytes of an image"),
        (None, "row 2: got no bytes of an image"),
    ):
        write(path, {"image": [*gray, other]})
        capfd.readouterr()
        refused(f"hub:{path}", cache, words, capfd)


def test_splits_that_do_not_fit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "cache"
    write(tmp_path / "a" / "train.parquet", rows(images(2)))
    write(tmp_path / "a" / "test.parquet", rows(images(2, (5, 4))))
    write(tmp_path / "b" / "train.parquet", rows(images(2)))
    write(tmp_path / "b" / "validation.parquet", rows(images(2)))
    write(tmp_path / "c" / "train.parquet", rows(images(1)))
    capfd.readouterr()
    refused(f"hub:{tmp_path}/a", cache, r"train \[3, 5, 4\] with 256 levels; test \[1, 5, 4\]", capfd)
    refused(f"hub:{tmp_path}/b", cache, "got the splits train, validation, expected train and test", capfd)
    with pytest.raises(UserError, match="got one image, expected at least 2"):
        load(DataConfig(set=f"hub:{tmp_path}/c", cache=str(cache)))


def test_columns_that_do_not_fit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, cache, image = tmp_path / "set.parquet", tmp_path / "cache", encoded(images(1)[0])
    write(path, {"label": [1]})
    capfd.readouterr()
    refused(f"hub:{path}", cache, r"got columns label \(Value\), expected exactly one of type Image", capfd)
    write(path, {"a": [image], "b": [image]}, {"a": datasets.Image(), "b": datasets.Image()})
    capfd.readouterr()
    refused(f"hub:{path}", cache, r"got columns a \(Image\), b \(Image\)", capfd)


def test_files_that_are_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "cache"
    write(tmp_path / "whole.parquet", rows(images(9)))
    capfd.readouterr()
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:-100])
    (tmp_path / "junk.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("text")
    for name, words in (
        ("cut.parquet", "cannot be read"),
        ("junk.parquet", "cannot be read"),
        ("absent.parquet", "found nothing, expected hub:NAME, a"),
        ("a.txt", "found something else, expected hub:NAME"),
        ("empty", r"found no \.parquet file in this folder"),
    ):
        refused(f"hub:{tmp_path}/{name}", cache, words, capfd)
    refused("hub:", cache, "found nothing, expected hub:NAME", capfd)


def test_a_set_of_the_hub_without_a_network(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused("hub:davi-tests/absent:plain", tmp_path / "cache", "cannot be read .*, expected a set of the hub", capfd)


def test_what_is_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})

    def load_dataset(**request: Any) -> Any:
        asked.update(request)
        table = datasets.Dataset.from_dict(rows(images(4)), features=kinds)
        return datasets.DatasetDict({"train": table, "test": table})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    read_hub("hub:owner/name:fine", tmp_path)
    assert asked == {"path": "owner/name", "name": "fine", "cache_dir": str(tmp_path)}  # and never to trust code
    read_hub("hub:owner/name", tmp_path)
    assert asked["name"] is None


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"hub:mnist: needs the package datasets; .*pip install -e '\.\[hub\]'$"):
        read_hub("hub:mnist", tmp_path)
