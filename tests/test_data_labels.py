"""Labels: kept beside their images through all that is made of these, and what a protocol says of them."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from with_labels import of, values

from davi.data import Augmentation, DataConfig, DataSets, Images, check_same, evenly, select, which_images
from davi.data.binarization import binarized, stream
from davi.data.images import Source, Whole
from davi.data.protocol import _part
from davi.data.sources import _releveled, _together
from davi.data.splitting import last_part, two_files
from davi.errors import UserError

DAVI = Path(__file__).parents[1] / "davi"


# What is made of images


def some(n: int = 10) -> Images:
    """Images whose first pixel tells their class: 0, or the highest value, which every draw leaves as it is."""
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 2, n))
    pixels = torch.arange(4 * n, dtype=torch.uint8).view(n, 1, 2, 2) % 17
    pixels[:, 0, 0, 0] = 16 * labels
    return Images(pixels, 17, "some", "f" * 64, True, torch.arange(n), labels, ("off", "on"))


def _binarized(images: Images) -> list[Images]:
    return [binarized(images, how, stream(0)) for how in ("none", "static", "dynamic", "threshold")]


def _by_position(images: Images) -> list[Images]:
    source = last_part(Whole(images, "a"), 0.3)
    return [source.train, source.test]


def _by_file(images: Images) -> list[Images]:
    source = two_files(Whole(images, "a"), Whole(images.subset([8, 2]), "b"))
    assert len(source.train) == len(images) - 2
    return [source.train, source.test]


def _joined(images: Images) -> list[Images]:
    return [_together(Source(images, images.subset([1, 2]), "", images.subset([5])), "x").images]


MADE: dict[str, Callable[[Images], list[Images]]] = {
    "by slice": lambda images: [images.subset(slice(2, 7))],
    "by index": lambda images: [images.subset([7, 1, 1, -1])],
    "moved": lambda images: [images.to("cpu")],
    "part": lambda images: [_part(images, slice(None)), _part(images, torch.tensor([3, 4]))],
    "evenly": lambda images: [evenly(images, 4)],
    "of other levels": lambda images: [_releveled(dataclasses.replace(images, levels=256), 17)],
    "binarized": _binarized,
    "split by position": _by_position,
    "split by file": _by_file,
    "joined": _joined,
}


@pytest.mark.parametrize("name", MADE)
def test_labels_go_where_their_images_go(name: str) -> None:
    for made in MADE[name](some()):
        assert made.classes == ("off", "on")
        assert values(made) == (made.pixels[:, 0, 0, 0] > 0).long().tolist()
        assert made.groups is None or len(made.groups) == len(made)
    plain = dataclasses.replace(some(), labels=None, classes=())
    assert all((made.labels, made.classes) == (None, ()) for made in MADE[name](plain))


def test_images_are_made_from_nothing_only_where_they_are_read() -> None:
    """All else changes fields of others (``dataclasses.replace``), so that none is forgotten."""
    found = {
        path.relative_to(DAVI).as_posix()
        for path in DAVI.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Images"
    }
    assert found == {"data/arrays.py", "data/decoded.py"}


@pytest.mark.parametrize(
    ("labels", "classes", "match"),
    [
        (torch.tensor([0, 1]), ("a", "b"), r"x: got labels torch\.int64 \[2\], expected torch\.int64 \[3\]"),
        (torch.tensor([0.0, 1.0, 1.0]), ("a", "b"), r"x: got labels torch\.float32 \[3\]"),
        (torch.tensor([0, 1, 2]), ("a", "b"), "x: got labels 0 to 2, expected 0 to 1"),
        (torch.tensor([0, -1, 1]), ("a", "b"), "x: got labels -1 to 1"),
        (torch.tensor([0, 1, 1]), ("a", "a"), "x: got class 'a' twice"),
        (torch.tensor([0, 0, 0]), (), "x: got labels without classes"),
        (None, ("a", "b"), "x: got 2 classes without labels"),
    ],
)
def test_labels_that_do_not_fit_images(labels: torch.Tensor | None, classes: tuple[str, ...], match: str) -> None:
    with pytest.raises(UserError, match=match):
        Images(torch.zeros(3, 1, 1, 1, dtype=torch.uint8), 2, "x", labels=labels, classes=classes)


def test_an_augmentation_tells_the_labels_of_what_it_presents() -> None:
    images, indices = some(), torch.tensor([9, 0, 3, 3])
    present = Augmentation(images, "dynamic")
    found = present.labels(indices)
    assert found is not None
    assert torch.equal(found, (present(indices, stream(0))[:, 0, 0, 0] > 0).long())
    assert Augmentation(dataclasses.replace(images, labels=None, classes=())).labels(indices) is None


def test_splits_have_the_same_classes() -> None:
    images = some()
    for classes, words in ((("on", "off"), "their order differs"), (("off", "on", "dim"), "'dim' is of one alone")):
        other = dataclasses.replace(images, classes=classes)
        with pytest.raises(UserError, match=f"classes of test images, 2 of training images.*{words}"):
            DataSets(images, None, other, {})
        with pytest.raises(UserError, match=words):
            _together(Source(images, other, ""), "x")
    with pytest.raises(UserError, match=r"data\.labels: 0 classes of validation images"):
        DataSets(images, dataclasses.replace(images, labels=None, classes=()), images, {})


# Protocols


def test_without_labels_nothing_is_said_of_them() -> None:
    plain, sets = of("digits", labels=False), of("digits")
    assert (plain.train.labels, plain.test.labels, plain.classes) == (None, None, ())
    added = set(sets.protocol) - set(plain.protocol)
    assert added == {
        *("labels", "classes", "classes_sha256"),
        *("train_labels_sha256", "validation_labels_sha256", "test_labels_sha256"),
    }
    assert plain.protocol == {key: value for key, value in sets.protocol.items() if key not in added}
    assert sets.protocol["validation_labels_sha256"] is None
    # Sections that older versions wrote have no such option.
    assert which_images({"set": "digits"}) == which_images(dataclasses.asdict(DataConfig("digits")))
    assert which_images({"set": "digits"}) != which_images({"set": "digits", "labels": True})


@pytest.mark.parametrize("binarization", ["none", "static", "dynamic", "threshold"])
def test_digits(binarization: str) -> None:
    target = load_digits().target.tolist()
    sets = of("digits", binarization=binarization, validation=300)
    assert sets.classes == tuple("0123456789")
    assert [values(part) for part in (sets.train, sets.validation, sets.test)] == [
        target[:1100],
        target[1100:1400],
        target[1400:],
    ]
    config = DataConfig("digits", binarization=binarization, validation=300, labels=True)  # type: ignore[arg-type]
    assert values(select(config, "train").images) == target[:1100]
    chosen = select(config, "all")
    assert values(chosen.images) == values(chosen.stored) == target
    assert (
        chosen.protocol["labels_sha256"] == select(DataConfig("digits", labels=True), "all").protocol["labels_sha256"]
    )


def test_a_run_goes_on_with_the_labels_it_was_begun_with() -> None:
    plain, sets = of("digits", labels=False), of("digits")
    check_same(plain.protocol, sets.protocol, "")  # what an older protocol does not know is not compared
    check_same(sets.protocol, sets.protocol, "")
    with pytest.raises(UserError, match="got labels nothing, expected True as when the run was begun"):
        check_same(sets.protocol, plain.protocol, "")
    with pytest.raises(UserError, match=r"got test_labels_sha256 0+"):
        check_same(sets.protocol, {**sets.protocol, "test_labels_sha256": "0" * 64}, "")
