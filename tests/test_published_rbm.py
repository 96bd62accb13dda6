"""Restricted Boltzmann machines of other programs: their arrays become runs whose numbers are those of enumeration, and
whatever else a file holds is refused in one line."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import malformed
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.neural_network import BernoulliRBM

import davi
from davi.cli import main
from davi.errors import UserError
from davi.evidence import Kind
from davi.model import Harmonium, Normalized
from davi.models.rbm import RBM
from davi.published.recognition import recognized
from davi.runs import load_network

Capture = pytest.CaptureFixture[str]
Arrays = dict[str, NDArray[Any]]


def golden() -> Arrays:
    """Six visible and four hidden units; log Z = 7.577492827519375."""
    i, j = np.arange(6), np.arange(4)
    return {"W": 0.8 * np.sin(i[:, None] + 2 * j + 1), "b": 0.1 * (i - 2), "c": 0.2 * (j - 1)}


def enumerated(arrays: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """All visible states, and their log-likelihoods by summing over the states of both layers."""
    couplings, b, c = (np.asarray(arrays[name], np.float64) for name in "Wbc")
    v, h = (np.array(list(itertools.product([0, 1], repeat=len(field)))) for field in (b, c))
    joint = (v @ b)[:, None] + h @ c + v @ couplings @ h.T
    return v, np.logaddexp.reduce(joint, axis=1) - np.logaddexp.reduce(joint, axis=None)


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def import_(path: Path, run: Path, *words: str) -> int:
    return main(["import", "rbm", str(path), "--run", str(run), *words])


def test_log_likelihoods_are_those_of_enumeration(tmp_path: Path, capsys: Capture) -> None:
    assert import_(saved(tmp_path / "a.npz", **golden()), tmp_path / "run", "--shape", "1,2,3") == 0
    told = capsys.readouterr().out
    assert "6 visible units, read as the pixels of 1x2x3 (channels, rows, columns), 4 hidden\n" in told
    assert "images of 1x2x3 with 2 levels; data set: unknown" in told
    model = davi.load(tmp_path / "run")
    v, expected = enumerated(golden())
    evidence = model.evidence(torch.from_numpy(v).view(-1, 1, 2, 3))
    assert evidence.kind is Kind.EXACT
    np.testing.assert_allclose(evidence.log_px.numpy(), expected, atol=2e-6)
    assert expected[0] == pytest.approx(-4.575052655796, abs=1e-11)
    assert expected[-1] == pytest.approx(-4.274147081606, abs=1e-11)


@pytest.mark.parametrize(
    ("array", "words", "shape"),
    [
        (None, (), (1, 1, 6)),
        ([3, 1, 2], (), (3, 1, 2)),
        ([3, 1, 2], ("--shape", "1, 2,3"), (1, 2, 3)),
    ],
)
def test_the_shape_is_that_of_the_option_or_of_the_file(
    tmp_path: Path, array: list[int] | None, words: tuple[str, ...], shape: tuple[int, int, int]
) -> None:
    more = {} if array is None else {"shape": np.array(array)}
    assert import_(saved(tmp_path / "a.npz", **golden(), **more), tmp_path / "run", *words) == 0
    network, info = load_network(tmp_path / "run")
    assert isinstance(network, RBM)
    assert (network.shape, network.levels, info["imported"]) == (shape, 2, "a.npz")
    np.testing.assert_array_equal(network.b.numpy().ravel(), np.float32(golden()["b"]))


def test_a_named_set_tells_the_shape(tmp_path: Path, capsys: Capture) -> None:
    arrays = {"W": np.zeros((784, 1), np.float16), "b": np.zeros(784, ">f4"), "c": np.zeros(1), "epochs": np.array([3])}
    path = saved(tmp_path / "a.npz", **arrays)
    assert import_(path, tmp_path / "run", "--data", "binarized_mnist") == 0
    told = capsys.readouterr().out
    assert "not used: epochs\n" in told
    assert "images of 1x28x28 with 2 levels; data set: binarized_mnist\n" in told
    small = saved(tmp_path / "small.npz", **golden())
    assert import_(small, tmp_path / "other", "--data", "binarized_mnist") == 2
    assert "images [1, 28, 28] of 2 levels, expected [1, 1, 6] of 2" in capsys.readouterr().err


def test_gray_images_of_the_same_size_need_a_threshold(tmp_path: Path, capsys: Capture) -> None:
    path = saved(tmp_path / "a.npz", W=np.zeros((64, 1)), b=np.zeros(64), c=np.zeros(1))
    assert import_(path, tmp_path / "gray", "--data", "digits") == 2
    expected = "images [1, 8, 8] of 17 levels, expected [1, 8, 8] of 2; data.binarization: threshold makes bits of them"
    assert expected in capsys.readouterr().err
    assert import_(path, tmp_path / "bits", "--data", "digits", "--data.binarization", "threshold") == 0


def test_the_hidden_units_of_a_recipe_are_those_of_the_file(tmp_path: Path, capsys: Capture) -> None:
    path = saved(tmp_path / "a.npz", **golden())
    assert import_(path, tmp_path / "run", "--model.weight_std", "0.5", "--model.hidden", "4") == 0
    assert import_(path, tmp_path / "other", "--model.hidden", "5") == 2
    assert capsys.readouterr().err == f"davi: {path}: model.hidden: got 5, expected 4 as in the file\n"
    assert import_(path, tmp_path / "other", "--model.visible", "potts") == 2
    assert f"davi: {path}: model.visible: got potts, expected binary" in capsys.readouterr().err


def without(name: str) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **{key: x for key, x in golden().items() if key != name})


def changed(**changes: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **{**golden(), **changes})


def hostile(path: Path) -> None:
    np.savez(path, **{**golden(), "b": np.array([malformed.Payload(path.parent / malformed.MARK)], dtype=object)})


def with_member(content: bytes) -> Callable[[Path], None]:
    """W is what is given; the other arrays are as they should be."""
    b, c = (malformed.npy_bytes(golden()[name]) for name in "bc")
    return malformed.npz({"W.npy": content, "b.npy": b, "c.npy": c})


def header_of(shape: str) -> bytes:
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def spoiled(name: str, place: tuple[int, ...], value: float) -> Callable[[Path], None]:
    array = golden()[name]
    array[place] = value
    return changed(**{name: array})


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "transposed": (
        changed(W=golden()["W"].T),
        "W: got shape [4, 6], which is transposed, expected [6, 4], the lengths of b and c; save W.T",
    ),
    "another shape": (changed(W=np.zeros((6, 5))), "W: got shape [6, 5], expected [6, 4], the lengths of b and c"),
    "one dimension": (changed(W=np.zeros(24)), "W: got shape [24], expected [6, 4]"),
    "a row": (changed(b=np.zeros((1, 6))), "b: got shape [1, 6], expected one dimension"),
    "a number": (changed(c=np.float64(1)), "got shape (), expected at least one dimension and one number"),
    "empty": (changed(c=np.zeros(0)), "got shape (0,), expected at least one dimension and one number"),
    "no W": (without("W"), "holds b, c, expected arrays W, b and c (W missing)"),
    "no b": (without("b"), "holds W, c, expected arrays W, b and c (b missing)"),
    "integers": (changed(W=np.zeros((6, 4), int)), "got int64, expected floating-point numbers"),
    "text": (changed(b=np.array(["x"] * 6)), "got str32, expected floating-point numbers"),
    "complex": (changed(c=np.zeros(4, complex)), "got complex128, expected floating-point numbers"),
    "NaN": (spoiled("W", (3, 2), np.nan), "W: got nan at [3, 2], expected finite numbers"),
    "infinite": (spoiled("b", (5,), -np.inf), "b: got -inf at [5], expected finite numbers"),
    "beyond float32": (spoiled("c", (0,), 1e39), "c: got 1e+39 at [0], expected finite numbers (float32)"),
    "a shape of two": (changed(shape=np.array([2, 3])), "shape: got an array of shape [2], expected three numbers"),
    "a shape of floats": (changed(shape=np.array([1.0, 2, 3])), "got float64, expected whole numbers"),
    "a negative shape": (changed(shape=np.array([-1, -2, 3])), "shape: got -1,-2,3, expected three numbers from 1"),
    "another number of pixels": (
        changed(shape=np.array([1, 2, 4])),
        "shape: got 1,2,4, 8 pixels, expected 6, the length of b",
    ),
    "too many units": (
        changed(W=np.zeros((65537, 4)), b=np.zeros(65537)),
        "b: got 65537 units, expected --shape C,H,W",
    ),
    "pickled": (hostile, "got pickled Python objects, which are never opened, expected floating-point numbers"),
    "cut": (malformed.cut(changed()), "is no .npz file, or damaged, expected one with arrays W, b and c"),
    "flipped": (malformed.flipped(changed(), 0.2), "cannot be read (Bad CRC-32 for file 'W.npy'), expected a whole"),
    "nothing": (malformed.put(b""), "is no .npz file, or damaged"),
    "npy": (malformed.npy_of("<f8", "(6, 4)"), "is no .npz file, or damaged"),
    "other arrays": (lambda path: np.savez(path, images=np.zeros((2, 3))), "holds images, expected arrays W, b and c"),
    "an empty archive": (malformed.npz({}), "holds nothing, expected arrays W, b and c (W, b, c missing)"),
    "no array": (with_member(b"hello"), "cannot be read"),
    "a false header": (with_member(header_of("(6, 40)") + bytes(192)), "holds 192 bytes of data, expected 1920"),
    "huge": (with_member(header_of("(16385, 16384)") + bytes(10**6)), "expected at most 268435456 numbers"),
    "overflowing": (with_member(header_of(f"({2**40}, {2**40})") + bytes(192)), "expected at most 268435456 numbers"),
    "a negative size": (with_member(header_of("(-6, -4)") + bytes(192)), "expected at least one dimension and one"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_such_machine_is_refused_in_one_line(tmp_path: Path, capsys: Capture, kind: str) -> None:
    make, words = REFUSED[kind]
    path = tmp_path / "a.npz"
    make(path)
    assert import_(path, tmp_path / "run") == 2
    told = capsys.readouterr().err
    assert told.startswith(f"davi: {path}: ")
    assert words in told
    assert told.count("\n") == 1
    assert {one.name for one in tmp_path.iterdir()} == {"a.npz"}


def test_an_archive_that_unpacks_to_more_than_it_can_hold_is_not_unpacked(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "a.npz"
    with_member(header_of("(6, 4)") + bytes(192))(path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        size = archive.infolist()[0].file_size.to_bytes(4, "little")
    place = content.rindex(size, content.index(b"PK\x01\x02"), content.index(b"W.npy", content.index(b"PK\x01\x02")))
    content[place : place + 4] = (2**31).to_bytes(4, "little")
    path.write_bytes(content)
    assert import_(path, tmp_path / "run") == 2
    assert "promises 2147483648 bytes, expected no more than the file can hold" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--shape", "28,28"), "--shape: got '28,28', expected channels, height and width, such as 1,28,28"),
        (("--shape", "1,2,x"), "--shape: got '1,2,x', expected channels, height and width"),
        (("--shape", "1,2,4"), "a.npz: shape: got 1,2,4, 8 pixels, expected 6, the length of b"),
        (("--shape", "0,2,3"), "a.npz: shape: got 0,2,3, expected three numbers from 1 to 65536"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(
    tmp_path: Path, capsys: Capture, words: tuple[str, ...], message: str
) -> None:
    assert import_(saved(tmp_path / "a.npz", **golden()), tmp_path / "run", *words) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_other_forms_know_it(tmp_path: Path, capsys: Capture) -> None:
    path = saved(tmp_path / "a.npz", **golden())
    assert recognized(path) == "rbm"
    assert main(["import", "vdvae", str(path), "--run", str(tmp_path / "run")]) == 2
    assert "looks like the arrays of an RBM (.npz), expected a VDVAE checkpoint; davi import rbm reads it" in (
        capsys.readouterr().err
    )
    assert main(["import", "vdvae", str(path), "--run", str(tmp_path / "run"), "--shape", "1,2,3"]) == 2
    assert "--shape: cannot be used with davi import vdvae, whose files tell it" in capsys.readouterr().err
    torch.save({"state": {}, "param_groups": []}, tmp_path / "opt.pt")
    assert import_(tmp_path / "opt.pt", tmp_path / "run") == 2
    assert "looks like the state of an optimizer, expected the arrays of an RBM (.npz)" in capsys.readouterr().err


@pytest.fixture(scope="module")
def fitted() -> BernoulliRBM:
    """Of scikit-learn, on images of 3 x 4 black and white pixels."""
    x = (np.random.default_rng(0).random((60, 12)) < np.linspace(0.1, 0.9, 12)).astype(np.float64)
    return BernoulliRBM(5, learning_rate=0.2, n_iter=3, random_state=0).fit(x)


def test_a_machine_of_scikit_learn(tmp_path: Path, fitted: BernoulliRBM) -> None:
    run = davi.import_rbm(fitted, tmp_path / "run", shape=(1, 3, 4))
    model = run.model
    assert isinstance(model, Normalized)
    energy = model.energy
    assert isinstance(energy, Harmonium)
    arrays = {"W": fitted.components_.T, "b": fitted.intercept_visible_, "c": fitted.intercept_hidden_}
    v, expected = enumerated(arrays)
    images = torch.from_numpy(v).view(-1, 1, 3, 4)
    np.testing.assert_allclose(model.evidence(images).log_px.numpy(), expected, atol=5e-6)
    hidden = energy.hidden.mean(energy.hidden_input(energy.state(images)))
    np.testing.assert_allclose(hidden.numpy(), fitted.transform(v), atol=1e-6)  # their p(h = 1 | v)
    assert run.samples(3).shape == (3, 1, 3, 4)
    np.save(tmp_path / "images.npy", v.reshape(-1, 3, 4).astype(bool)[::100])
    measured = run.evaluate(data=tmp_path / "images.npy", split="all")
    assert measured.result.bound.nats.mean == pytest.approx(expected[::100].mean(), abs=5e-6)


def test_arrays_in_memory_and_files_give_the_same_run(tmp_path: Path, capsys: Capture) -> None:
    arrays = golden()
    tensors = {name: torch.nn.Parameter(torch.from_numpy(array)) for name, array in arrays.items()}
    path = saved(tmp_path / "a.npz", **arrays, shape=(1, 2, 3))
    sources = {"arrays": {**arrays, "shape": (1, 2, 3)}, "tensors": {**tensors, "shape": [1, 2, 3]}, "file": path}
    states = []
    for name, source in sources.items():
        davi.import_rbm(source, tmp_path / name)
        network, _ = load_network(tmp_path / name)
        assert network.shape == (1, 2, 3)
        states.append(network.state_dict())
    assert all(torch.equal(states[0][key], state[key]) for state in states for key in state)
    told = capsys.readouterr().out
    assert told.count("data set: unknown") == 3
    pixels = np.tile(np.eye(6, dtype=np.uint8), (4, 1)).reshape(-1, 2, 3)
    np.save(tmp_path / "data.npy", 200 * pixels)
    run = davi.import_rbm(
        arrays, tmp_path / "with", shape=(1, 2, 3), data=tmp_path / "data.npy", binarization="threshold"
    )
    assert run.recipe.data is not None
    assert run.recipe.data.binarization == "threshold"


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (3, {}, "rbm: got int, expected a fitted BernoulliRBM or a mapping with arrays W, b and c"),
        (BernoulliRBM(), {}, "rbm: got BernoulliRBM, expected a fitted BernoulliRBM"),
        ({"W": np.zeros((2, 2))}, {}, "rbm: got no b, c, expected arrays W, b and c"),
        ({**golden(), "b": [0, 0, 0, 0, 0, 0]}, {}, "b: got int64, expected floating-point numbers"),
        (golden(), {"shape": (1, 2, 4)}, "shape: got 1,2,4, 8 pixels, expected 6"),
        (golden(), {"shape": (2, 3)}, "shape: got 2,3, expected three numbers from 1 to 65536"),
        (golden(), {"binarisation": "threshold"}, "unknown option of davi.import_rbm; did you mean binarization?"),
        ("absent.npz", {}, "absent.npz: no such file"),
    ],
)
def test_what_cannot_be_imported_in_python(tmp_path: Path, source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        davi.import_rbm(source, tmp_path / "run", **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
