"""Decoded images on disk: made once, made again when anything changed, never taken for whole when they are not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from PIL import Image

from davi.data import Augmentation, DataConfig, DataSets, Images, Sampler, decoded, load, which_images
from davi.data.cache import INDEX, Writer, fetch, location
from davi.data.decoded import FILES
from davi.data.decoding import decode
from davi.data.protocol import digest
from davi.errors import UserError


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for this test."""
    monkeypatch.setenv("DAVI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of 30 gray images."""
    (tmp_path / "images").mkdir()
    for i in range(30):
        write(tmp_path / "images" / f"{i}.png", i)
    return tmp_path / "images"


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files decoded since the beginning of the test."""
    names: list[str] = []

    def counted(file: Path, name: str, *options: Any) -> Any:
        names.append(name)
        return decode(file, name, *options)

    monkeypatch.setattr(decoded, "decode", counted)
    return names


def write(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 6), dtype=np.uint8)).save(path)


def read(path: Path, **options: Any) -> DataSets:
    return load(DataConfig(set=str(path), test_fraction=0.3, **options))


def entries(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


def test_a_file_of_unknown_length_is_an_ordinary_array(tmp_path: Path) -> None:
    blocks = [np.full((n, 3, 2, 2), n, np.int32) for n in (1, 20, 300)]
    with Writer(tmp_path / "a.npy", (3, 2, 2), np.dtype(np.int32)) as writer:
        for block in blocks:
            writer.append(block)
        record = writer.finish()
    expected = np.concatenate(blocks)
    assert np.array_equal(np.load(tmp_path / "a.npy"), expected)
    sha = hashlib.sha256(expected.astype("<i4").tobytes()).hexdigest()
    assert record == {"file": "a.npy", "shape": [321, 3, 2, 2], "dtype": "<i4", "sha256": sha}


def test_files_are_decoded_once(own: Path, images: Path, decodings: list[str]) -> None:
    first = read(images)
    assert len(decodings) == 30
    told: list[tuple[int, int]] = []
    second = load(DataConfig(set=str(images), test_fraction=0.3), lambda done, total: told.append((done, total)))
    assert (len(decodings), told) == (30, [])
    assert first.protocol == second.protocol
    assert torch.equal(first.train.pixels, second.train.pixels)
    (entry,) = entries(own)
    lines = [json.loads(line) for line in (entry / FILES).read_text().splitlines()]
    assert [line["file"] for line in lines] == sorted(f"{i}.png" for i in range(30))
    assert sum(line["images"] for line in lines if line["part"] == "test") == len(first.test)


def disguise(path: Path) -> None:
    """Other pixels, as a copy that keeps the date, or an archive without dates, brings them."""
    before = path.stat()
    write(path, 97)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


CHANGES: dict[str, Callable[[Path], object]] = {
    "another file": lambda path: write(path / "new.png", 99),
    "a file less": lambda path: (path / "3.png").unlink(),
    "another name": lambda path: (path / "3.png").rename(path / "three.png"),
    "another content": lambda path: write(path / "3.png", 98),
    "another time": lambda path: os.utime(path / "3.png", ns=(1, 1)),
    "another content of the same size and time": lambda path: disguise(path / "3.tif"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_made_again_when_files_change(own: Path, images: Path, decodings: list[str], change: str) -> None:
    write(images / "3.tif", 96)
    read(images)
    decodings.clear()
    CHANGES[change](images)
    read(images)
    assert len(decodings) == len(list(images.iterdir()))
    assert len(entries(own)) == 1  # in the place of the old one


def test_other_options_have_a_cache_of_their_own(own: Path, images: Path, decodings: list[str]) -> None:
    for options in ({}, {"crop": (4, 4)}, {"validation": 0.3}, {}, {"memory": 0.0}, {"skip_unreadable": True}):
        read(images, **options)
    assert len(decodings) == 3 * 30
    assert len(entries(own)) == 3


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(5000))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "array cut": lambda entry: cut(entry / "train.npy"),
    "array longer": lambda entry: lengthen(entry / "test.npy"),
    "array empty": lambda entry: os.truncate(entry / "train.npy", 0),
    "array gone": lambda entry: (entry / "test.npy").unlink(),
    "other array": lambda entry: np.save(entry / "test.npy", np.zeros((2, 1, 8, 6), np.uint8)),
    "index cut": lambda entry: cut(entry / INDEX),
    "index foreign": lambda entry: (entry / INDEX).write_text("[1, 2]"),
    "index gone": lambda entry: (entry / INDEX).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_noticed(own: Path, images: Path, decodings: list[str], damage: str) -> None:
    before = read(images)
    (entry,) = entries(own)
    DAMAGES[damage](entry)
    decodings.clear()
    after = read(images)
    assert len(decodings) == 30
    assert after.protocol == before.protocol
    assert torch.equal(after.test.pixels, before.test.pixels)
    assert entries(own) == [entry]


def killed_while_building(path: str, after: int) -> None:
    done = 0

    def killer(file: Path, name: str, *options: Any) -> Any:
        nonlocal done
        done += 1
        if done == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(file, name, *options)

    pytest.MonkeyPatch().setattr(decoded, "decode", killer)  # in a process of its own
    read(Path(path))


@pytest.mark.parametrize("after", [1, 25])
def test_what_a_killed_process_leaves_is_not_taken_for_whole(own: Path, images: Path, after: int) -> None:
    ended = forked.call(killed_while_building, str(images), after, folder=images.parent)
    assert ended.status == -signal.SIGKILL
    assert [path.suffix for path in entries(own)] == [".new"]
    sets = read(images)
    assert sum(sets.protocol["files"].values()) == 30
    assert [path.suffix for path in entries(own)] == [""]


def test_nothing_is_left_of_a_set_that_cannot_be_used(own: Path, images: Path) -> None:
    (images / "bad.png").write_bytes(b"")
    with pytest.raises(UserError):
        read(images)
    assert entries(own) == []


def test_a_large_set_is_mapped_and_trained_on(own: Path, images: Path) -> None:
    """With ``memory`` 0 nothing is read before it is used; batches are those of the set in memory."""
    held, mapped = read(images), read(images, memory=0.0)
    (entry,) = entries(own)
    with Path("/proc/self/maps").open() as maps:
        mappings = maps.read()
    assert str(entry / "train.npy") in mappings
    order, generator = Sampler(len(mapped.train), 8, seed=3), torch.Generator()
    present = [Augmentation(sets.train, "dynamic", "both") for sets in (held, mapped)]
    for _ in range(5):
        batch = next(order)
        first, second = (p(batch, generator.manual_seed(1)) for p in present)
        assert torch.equal(first, second)
    mapped.train.pixels[0] = 0  # of the memory's copy
    assert torch.equal(read(images, memory=0.0).train.pixels, held.train.pixels)


def test_known_hashes_and_limits_are_not_computed_again() -> None:
    pixels = torch.full((2, 1, 3, 3), 7, dtype=torch.int32)
    images = Images(pixels, 1000, "x", sha256="f" * 64, checked=True)
    assert digest(images) == digest(images.to("cpu")) == "f" * 64
    part = images.subset(slice(1))
    assert digest(part) == hashlib.sha256(pixels[:1].numpy().astype("<i4").tobytes()).hexdigest()
    with pytest.raises(UserError, match="at least one image"):
        images.subset(slice(0))


def test_few_images_are_in_memory_while_it_is_made(own: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two for each thread: decoding waits until what was decoded before is written."""
    monkeypatch.setattr(decoded, "_THREADS", 2)
    started: list[str] = []
    written: list[int] = []
    append = Writer.append

    def watched(self: Writer, rows: Any) -> None:
        written.append(len(rows))
        assert len(started) - len(written) <= 4
        append(self, rows)

    def counted(file: Path, name: str, *options: Any) -> Any:
        started.append(name)
        return decode(file, name, *options)

    monkeypatch.setattr(decoded, "decode", counted)
    monkeypatch.setattr(Writer, "append", watched)
    read(images)
    assert (len(started), written) == (30, [1] * 30)


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, images: Path) -> None:
    monkeypatch.setenv("DAVI_CACHE", str(tmp_path / "a"))
    assert location(None) == tmp_path / "a"
    assert location("b") == Path("b")
    monkeypatch.delenv("DAVI_CACHE")
    assert location(None) == Path("~/.cache/davi").expanduser()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"data\.cache: .*file cannot be used \(.*\), expected a folder with room"):
        read(images, cache=str(tmp_path / "file"))


def test_a_full_disk_costs_one_line(own: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Writer, rows: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Writer, "append", full)
    with pytest.raises(UserError, match=r"data\.cache: .* cannot be used \(No space left on device\)"):
        read(images)
    assert entries(own) == []


def test_one_makes_it_while_the_others_wait(tmp_path: Path) -> None:
    """Four threads that want the same: one builds."""
    from concurrent.futures import ThreadPoolExecutor

    built: list[Path] = []

    def build(place: Path) -> dict[str, Any]:
        built.append(place)
        return {"arrays": {}}

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: fetch(tmp_path, {"set": "x"}, "stamp", build)[0], range(4)))
    assert len(built) == 1
    assert len(set(found)) == 1


def test_an_older_run_goes_on_with_todays_options(tmp_path: Path) -> None:
    """Options that did not exist when a run was begun have their defaults; where images are read may change."""
    old = {"set": "mnist", "root": "elsewhere", "validation": 1000}
    now = DataConfig(set="mnist", root="here", validation=1000, cache=str(tmp_path), memory=4.0, skip_unreadable=True)
    assert which_images(old) == which_images(dataclasses.asdict(now))
    assert which_images(old) != which_images({**old, "crop": [8, 8]})
    assert which_images(None) is None
