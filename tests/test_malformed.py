"""Malformed input of every kind, to every verb: exit status 2, one line, nothing executed, and no waiting.

Each row is also a promise about time: :mod:`forked` ends the program after ten seconds, which fails the test.
"""

from __future__ import annotations

import gzip
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import malformed as m
import numpy as np
import pytest
import torch
from forked import SECONDS, Ended, davi

from davi.cli import main
from davi.errors import one_line

TINY = "attentive_digits_tiny"
READERS = ("evaluate {run} --data", "reconstruct {run} --data", "inspect {run} --data")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, evaluated, not to be changed."""
    run = tmp_path_factory.mktemp("malformed") / "trained"
    assert main(["train", TINY, "--run", str(run), "--training.steps", "1"]) == 0
    assert main(["evaluate", str(run), "--limit", "4"]) == 0
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAVI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("DAVI_DATA", raising=False)


def refused(line: str, tmp_path: Path, words: str = "") -> Ended:
    """The program ends with status 2 and one line, and executes nothing."""
    ended = davi(line.split(), tmp_path)
    assert ended.status is not None, f"davi {line} took more than {SECONDS} seconds"
    assert ended.status == 2, (line, ended)
    assert ended.err.startswith("davi: "), (line, ended.err)
    assert ended.err.count("\n") == 1, (line, ended.err)
    assert ended.err[:-1].isprintable(), (line, ended.err)
    assert "Traceback" not in ended.err + ended.out
    assert words in ended.err, (line, ended.err)
    assert not list(tmp_path.rglob(m.MARK))
    return ended


DATA: dict[str, tuple[str, m.Make, str]] = {
    # name of the row: name of the file or folder, what makes it, words of the message besides its name
    "npy empty": ("a.npy", m.put(b""), "cannot be read"),
    "npy text": ("a.npy", m.put(b"these are no numbers\n" * 9), "cannot be read"),
    "npy cut": ("a.npy", m.cut(m.put(m.npy_bytes(m.GRAY))), "holds"),
    "npy with a pickle": ("a.npy", m.pickled_npy, "pickled Python objects, which are never opened"),
    "npy that is a pickle": ("a.npy", m.pickled, "cannot be read"),
    "npy of an exabyte": ("a.npy", m.npy_of("|u1", "(1000000000, 1000000, 1000)"), "holds 100 bytes"),
    "npy of a negative size": ("a.npy", m.npy_of("|u1", "(-1, 8, 8)"), "expected at least one image"),
    "npy of floats": ("a.npy", m.put(m.npy_bytes(np.zeros((3, 8, 8)))), "got float64"),
    "npy with code in its header": ("a.npy", m.npy("__import__('os').mkdir('mark')"), "cannot be read"),
    "npy with an endless header": ("a.npy", m.npy("(" * 9000), "cannot be read"),
    "npy of one dimension": ("a.npy", m.put(m.npy_bytes(m.GRAY[0, 0])), "got shape (8,)"),
    "npy that is a folder": ("a.npy", m.folder, ""),
    "npy that is a pipe": ("a.npy", m.fifo, "found something that is not a file"),
    "npy that is a device": ("a.npy", m.link("/dev/zero"), "found something that is not a file"),
    "npy linked to itself": ("a.npy", m.link("a.npy"), ""),
    "npz with a pickle": ("a.npz", m.pickled_npz, "pickled Python objects, which are never opened"),
    "npz that is none": ("a.npz", m.put(b"PK\x03\x04" + bytes(50)), "cannot be read"),
    "npz cut": ("a.npz", m.cut(m.npz({"images.npy": m.npy_bytes(m.GRAY)})), "cannot be read"),
    "npz with a changed byte": ("a.npz", m.flipped(m.npz({"images.npy": m.npy_bytes(m.GRAY)})), "cannot be read"),
    "npz that unpacks to more": ("a.npz", m.npz_bomb, "holds"),
    "npz with names that leave it": (
        "a.npz",
        m.npz({"../../mark.npy": b"", "/mark.npy": b""}),
        "expected an array",
    ),
    "IDX of labels": ("t10k-labels-idx1-ubyte", m.put(m.idx(9, 8, 8, bytes(999), 0x801)), "begins with 0x00000801"),
    "IDX cut": ("train-images-idx3-ubyte", m.put(m.idx(9, 8, 8, bytes(575))), ""),
    "IDX too long": ("train-images-idx3-ubyte", m.put(m.idx(9, 8, 8, bytes(577))), "goes on after 576 bytes"),
    "IDX of an exabyte": ("train-images-idx3-ubyte", m.put(m.idx(2**32 - 1, 2**15, 2**15, b"")), "promises"),
    "IDX packed and cut": (
        "train-images-idx3-ubyte.gz",
        m.cut(m.put(gzip.compress(m.idx(12, 8, 8, m.GRAY.tobytes())))),
        "cannot be read",
    ),
    "IDX that unpacks to more": (
        "train-images-idx3-ubyte.gz",
        m.put(gzip.compress(m.idx(10**5, 100, 100, bytes(10**6)))),
        "promises 1000000000 bytes",
    ),
    "IDX that is not packed": ("train-images-idx3-ubyte.gz", m.put(m.idx(9, 8, 8, bytes(576))), "cannot be read"),
    "amat with a letter": ("a.amat", m.amat(lambda row: row.__setitem__(5, "x")), "row 2: got 'x'"),
    "amat with a two": ("a.amat", m.amat(lambda row: row.__setitem__(5, "2")), "row 2: got '2'"),
    "amat with a short row": ("a.amat", m.amat(lambda row: row.pop() and None), "row 2: got 783 values"),
    "amat empty": ("a.amat", m.put(b""), "got no rows"),
    "amat of one long line": ("a.amat", m.put(b"0 1 " * 10**6), "row 1"),
    "mat that is none": ("chardata.mat", m.put(b"MATLAB? no"), "got a file of another kind"),
    "mat without images": ("chardata.mat", m.mat(other=np.eye(3)), "data: got nothing"),
    "mat of another shape": ("chardata.mat", m.mat(data=np.eye(3), testdata=np.eye(3)), "expected double (784, N)"),
    "mat cut": ("chardata.mat", m.cut(m.mat(data=np.random.default_rng(0).random((784, 9)))), ""),
    "CIFAR of another length": ("data_batch_1.bin", m.put(bytes(3072)), "expected a multiple of 3073"),
    "CIFAR with a label of 255": ("test.bin", m.put(b"\xff" * 3074), "got label 255"),
    "CIFAR as a pickle": ("data_batch_1", m.pickled, "pickles, which are never opened"),
    "CIFAR packed and cut": ("cifar-10-binary.tar.gz", m.cut(m.put(m.archive(3073, bytes(3073)))), "cannot be read"),
    "CIFAR packed with links": ("cifar-10-binary.tar.gz", m.links, "holds neither"),
    "CIFAR packed, of 8 GB": ("cifar-10-binary.tar.gz", m.put(m.archive(2**33 - 1, bytes(9999))), "cannot be read"),
    "archive that is none": ("cifar-100-binary.tar.gz", m.put(b"not packed"), "cannot be read"),
    "a file of another kind": ("a.txt", m.put(b"text"), ""),
    "a name with a line break": ("a%0Ab.npy", m.put(b""), "cannot be read"),
    "folder empty": ("images", m.folder, "found no images"),
    "folder without images": ("images", m.many("notes.txt", m.put(b"text")), "found no images"),
    "folder of folders": ("images", m.many("a.png", m.folder), "found no images"),
    "folder linked to itself": ("images", m.many("again", m.link(".")), "found no images"),
    "folder of one image": ("images", m.many("a.png", m.image("PNG")), ""),
    # The first directory of this one is whole; it must only not be followed for ever.
    "folder of a TIFF in a circle": (
        "images",
        m.many("a.tif", m.put(m.tiff(m.tiff_entries(8, 8), following=8))),
        "got 1 different image",
    ),
    "images of several sizes": ("images", m.beside_good("b.png", m.image("PNG", size=(9, 8))), "data.crop"),
    "images of several kinds": ("images", m.beside_good("b.png", m.image("PNG", "RGB")), "expected all alike"),
    "images of several depths": ("images", m.beside_good("b.png", m.put(m.png(data=bytes(136), depth=16))), "alike"),
    "CIFAR folder as pickles": ("set", m.many("data_batch_1", m.pickled), "pickles, which are never opened"),
    "parquet that is none": ("a.parquet", m.put(b"PAR1" + bytes(99)), ""),
}
"""Sets and single files."""

IMAGES: dict[str, tuple[str, m.Make, str]] = {
    "empty": ("x.png", m.put(b""), "expected a PNG"),
    "text": ("x.png", m.put(b"this is no image\n"), "expected a PNG"),
    "a pickle": ("x.png", m.pickled, "expected a PNG"),
    "a GIF as PNG": ("x.png", m.image("GIF"), "expected a PNG"),
    "PostScript as PNG": ("x.png", m.put(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"), "expected a PNG"),
    "PNG with a wrong checksum": ("x.png", m.put(m.png()[:-5] + b"\0" + m.png()[-4:]), ""),
    "PNG cut": ("x.png", m.cut(m.image("PNG")), "cannot be read"),
    "PNG with a changed byte": ("x.png", m.flipped(m.image("PNG")), "cannot be read"),
    "PNG of 4 Gpixel squared": ("x.png", m.put(m.png(2**31 - 1, 2**31 - 1)), ""),
    "PNG without a pixel": ("x.png", m.put(m.png(0, 0)), ""),
    "PNG of 10^10 pixels": ("x.png", m.put(m.png(10**5, 10**5)), "too many pixels"),
    "PNG with a text that unpacks to 100 MB": (
        "x.png",
        m.put(m.png(before=m.chunk(b"zTXt", b"a\0\0" + gzip.zlib.compress(bytes(10**8))))),  # type: ignore[attr-defined]
        "",
    ),
    "PNG with transparency": ("x.png", m.image("PNG", "RGBA"), "-flatten"),
    "PNG with gray transparency": ("x.png", m.image("PNG", "LA"), "-flatten"),
    "PNG of two frames": ("x.png", m.frames("PNG"), "2 frames"),
    "JPEG cut": ("x.jpg", m.cut(m.image("JPEG", size=(64, 64))), "cannot be read"),
    "JPEG of its header": ("x.jpg", m.put(b"\xff\xd8\xff\xe0"), ""),
    "JPEG as CMYK": ("x.jpeg", m.image("JPEG", "CMYK"), "magick IN -colorspace sRGB"),
    "WebP cut": ("x.webp", m.cut(m.image("WEBP", "RGB", lossless=True)), ""),
    "WebP of two frames": ("x.webp", m.frames("WEBP"), "2 frames"),
    "TIFF of 4 Gpixel squared": ("x.tiff", m.put(m.tiff(m.tiff_entries(2**32 - 1, 2**32 - 1))), "too many pixels"),
    "TIFF without a size": ("x.tif", m.put(m.tiff([])), ""),
    "TIFF without the sizes of its strips": (
        "x.tif",
        m.put(
            m.tiff([(256, 4, 1, 8), (257, 4, 1, 4), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 0), (273, 4, 1, 122)])
        ),
        "1 strips or tiles and 0 sizes of them",
    ),
    "TIFF of floats": ("x.tif", m.image("TIFF", "F"), "floating-point values"),
    "TIFF of two pages": ("x.tif", m.frames("TIFF"), "2 frames"),
    "BMP of a negative size": ("x.bmp", m.put(m.bmp(-8, -8)), ""),
    "BMP of 10^9 pixels": ("x.bmp", m.put(m.bmp(2**30, 1)), "too many pixels"),
    "BMP cut": ("x.bmp", m.cut(m.image("BMP")), ""),
    "a pipe": ("x.png", m.fifo, "no regular file"),
    "a device": ("x.png", m.link("/dev/zero"), "no regular file"),
    "a broken link": ("x.png", m.link("absent.png"), ""),
    "a link to itself": ("x.png", m.link("x.png"), ""),
    "in a folder below": ("below/x.png", m.put(b""), "below/x.png"),
    "a name with a line break": ("x\ny.png", m.put(b""), ""),
    "a name that commands a terminal": ("x\x1b[2Jy.png", m.put(b""), r"x\x1b[2Jy.png"),
    "a name that is no text": (b"x\xff.png".decode(errors="surrogateescape"), m.put(b""), ""),
}
"""One image beside twelve good ones."""


def lines_for(number: int, run: Path) -> list[str]:
    """Training reads every row; of the verbs that read images in the same way, one reads every sixth."""
    lines = [f"train {TINY} --run new --data"]
    return lines if number % 6 else [*lines, READERS[number // 6 % len(READERS)].format(run=run)]


@pytest.mark.parametrize("row", DATA)
def test_data(row: str, run: Path, tmp_path: Path) -> None:
    name, make, words = DATA[row]
    given = "hub:" if name.endswith(".parquet") else ""
    place = tmp_path / "given"
    place.mkdir()
    make(place / name.replace("%0A", "\n"))
    if "%0A" in name:  # a line is split into words at spaces, so this word goes another way
        ended = davi(["train", TINY, "--run", "new", "--data", str(place / "a\nb.npy")], tmp_path)
        assert (ended.status, ended.err.count("\n")) == (2, 1)
        return
    for line in lines_for(list(DATA).index(row), run):
        ended = refused(f"{line} {given}{place / name}", tmp_path, words)
        assert name in ended.err or str(place) in ended.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("row", IMAGES)
def test_an_image_in_a_folder(row: str, run: Path, tmp_path: Path) -> None:
    name, make, words = IMAGES[row]
    m.beside_good(name, make)(tmp_path / "images")
    for line in lines_for(list(IMAGES).index(row), run):
        ended = refused(f"{line} {tmp_path}/images", tmp_path, words)
        assert "--skip-unreadable" in ended.err
        assert one_line(name) in ended.err
    assert not (tmp_path / "new").exists()


def test_unreadable_images_are_left_out_on_demand(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    m.beside_good("x.png", m.put(b""))(folder)
    m.image("PNG", "RGBA")(folder / "y.png")
    line = f"train {TINY} --run new --data {folder} --data.test_fraction 0.5 --data.validation 0 --training.steps 1"
    ended = refused(line, tmp_path, "2 of 14")
    assert "x.png" in ended.err
    assert "y.png" in ended.err
    ended = davi([*line.split(), "--skip-unreadable"], tmp_path)
    assert ended.status == 0, ended
    assert "2 unreadable image" in ended.out


RECIPES: dict[str, tuple[m.Make, str]] = {
    "empty": (m.text(""), ""),
    "not YAML": (m.text("model: [1, 2\ndata: }"), "not valid YAML"),
    "bytes": (m.put(b"\xff\xfe\x00\x01"), ""),
    "a control character": (m.put(b"model: \x00"), ""),
    "a list": (m.text("- model\n- data\n"), ""),
    "one word": (m.text("model"), ""),
    "another type": (m.text("model: {name: attentive_vae, width: [wide]}\ntraining: {steps: 1}\n"), "width"),
    "a number for a section": (m.text("model: 7\n"), "model"),
    "an unknown section": (m.text("modle: {name: attentive_vae}\n"), "model: got nothing"),
    "a tag that calls": (m.text("model: !!python/object/apply:os.mkdir [mark]\n"), ""),
    "a tag of a module": (m.text("model: !!python/module:antigravity\n"), ""),
    "a billion laughs": (m.text(m.BILLION_LAUGHS), ""),
    "an alias of itself": (m.text("model: &a [*a]\n"), ""),
    "brackets without end": (m.text("model: " + "[" * 5000), ""),
    "a key twice": (m.text("model: {name: attentive_vae}\nmodel: {name: other}\n"), ""),
    "a number of 100,000 digits": (m.text("model: {name: attentive_vae, width: " + "9" * 10**5 + "}\n"), ""),
    "two documents": (m.text("model: {name: attentive_vae}\n---\nmodel: {}\n"), ""),
    "a pickle": (m.pickled, ""),
    "a folder": (m.folder, ""),
    "a pipe": (m.fifo, ""),
    "a device": (m.link("/dev/zero"), ""),
    "a broken link": (m.link("absent.yaml"), ""),
}


@pytest.mark.parametrize("row", RECIPES)
def test_recipe(row: str, tmp_path: Path) -> None:
    make, words = RECIPES[row]
    make(tmp_path / "mine.yaml")
    refused(f"train {tmp_path}/mine.yaml --run new", tmp_path, words)
    if row not in ("an unknown section", "another type", "a number for a section", "a number of 100,000 digits"):
        refused(f"recipes show {tmp_path}/mine.yaml", tmp_path)


def torch_pickle(path: Path) -> None:
    torch.save({"weight": m.Payload(path.parent / m.MARK)}, path)


def foreign_weights(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3)}, path, metadata={"format": "pt"})


MODELS: dict[str, tuple[m.Make | None, str]] = {
    "empty": (m.put(b""), "not a complete safetensors file"),
    "cut": (None, "not a complete safetensors file"),
    "one byte changed": (None, "the tensors are not those that were written"),
    "a header of an exabyte": (m.put(struct.pack("<Q", 2**60) + b"{}"), "not a complete safetensors file"),
    "a header that is no JSON": (m.put(struct.pack("<Q", 8) + b"{{{{{{{{"), "not a complete safetensors file"),
    "tensors beyond the file": (
        m.put(struct.pack("<Q", 59) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,9999999]}}'),
        "not a complete safetensors file",
    ),
    "of another program": (foreign_weights, "got no davi metadata"),
    "a pickle": (m.pickled, "not a complete safetensors file"),
    "a pickle of torch": (torch_pickle, "not a complete safetensors file"),
    "a folder": (m.folder, ""),
    "a pipe": (m.fifo, ""),
    "a device": (m.link("/dev/zero"), ""),
}


@pytest.mark.parametrize("row", MODELS)
@pytest.mark.parametrize("verb", ["evaluate", "sample", "reconstruct", "inspect"])
def test_model(row: str, verb: str, run: Path, tmp_path: Path) -> None:
    make, words = MODELS[row]
    path = run / "model.safetensors"
    content = path.read_bytes()
    path.unlink()
    if make is not None:
        make(path)
    else:
        path.write_bytes(content[:-99] if row == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    ended = refused(f"{verb} {run}", tmp_path, words)
    assert "model.safetensors" in ended.err


NUMBERS: dict[str, m.Make] = {
    "empty": m.put(b""),
    "text": m.put(b"no JSON"),
    "bytes": m.put(b"\xff\x00\xfe"),
    "a list": m.put(b"[]"),
    "brackets without end": m.put(b"[" * 10**5),
    "not a number": m.put(b'{"bound": NaN}'),
    "a number of 100,000 digits": m.put(b'{"format": ' + b"9" * 10**5 + b"}"),
    "a pickle": m.pickled,
    "a folder": m.folder,
    "a pipe": m.fifo,
    "a device": m.link("/dev/zero"),
}


@pytest.mark.parametrize("row", NUMBERS)
def test_evaluation(row: str, trained: Path, run: Path, tmp_path: Path) -> None:
    for name in ("evaluation.json", "evaluation.safetensors"):
        copy = tmp_path / name.replace(".", "-")
        shutil.copytree(run, copy)
        (copy / name).unlink()
        NUMBERS[row](copy / name)
        ended = refused(f"compare {trained} {copy}", tmp_path)
        assert name.partition(".")[0] in ended.err
    assert (trained / "evaluation.json").is_file()


@pytest.mark.parametrize("row", NUMBERS)
def test_checkpoint(row: str, run: Path, tmp_path: Path) -> None:
    (run / "model.safetensors").unlink()
    for path in run.rglob("state.json"):
        path.unlink()
        NUMBERS[row](path)
    refused(f"train --run {run} --resume --training.steps 2", tmp_path)


@pytest.mark.parametrize("name", ["recipe.yaml"])
@pytest.mark.parametrize("row", ["not YAML", "a tag that calls", "a billion laughs", "a pipe", "a folder"])
def test_recipe_of_a_run(row: str, name: str, run: Path, tmp_path: Path) -> None:
    (run / name).unlink()
    RECIPES[row][0](run / name)
    for line in ("evaluate {run}", "reconstruct {run}", "inspect {run}", "train --run {run} --resume"):
        refused(line.format(run=run), tmp_path)


@pytest.mark.parametrize("verb", ["evaluate", "sample", "reconstruct", "inspect", "compare"])
@pytest.mark.parametrize("row", ["absent", "an empty folder", "a file of text", "a pipe", "a link to itself"])
def test_what_is_no_run(verb: str, row: str, tmp_path: Path) -> None:
    place = tmp_path / "thing"
    makes = {"an empty folder": m.folder, "a file of text": m.put(b"text"), "a pipe": m.fifo}
    makes |= {"a link to itself": m.link("thing"), "absent": lambda path: None}
    makes[row](place)
    refused(f"{verb} {place}", tmp_path)


@pytest.mark.parametrize("row", ["empty", "text", "bytes", "a pickle", "a folder", "a pipe", "a device"])
def test_import(row: str, tmp_path: Path) -> None:
    NUMBERS[row](tmp_path / "weights.h5")
    ended = refused(f"import attentive {tmp_path}/weights.h5 --run new", tmp_path)
    assert "weights.h5" in ended.err


@pytest.mark.parametrize("row", ["cut", "a changed byte", "of another program"])
def test_import_of_hdf5(row: str, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="needs the package h5py")
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        file["a"] = np.zeros(9999)
    if row == "cut":
        m.cut(lambda path: None)(path)
    if row == "a changed byte":
        m.flipped(lambda path: None, where=0.0)(path)
    refused(f"import attentive {path} --run new", tmp_path)


def test_a_process_of_its_own(run: Path, tmp_path: Path) -> None:
    """The forked processes are no other than the program as it is started: three of the rows once more."""
    m.pickled_npy(tmp_path / "a.npy")
    m.text(m.BILLION_LAUGHS)(tmp_path / "mine.yaml")
    for words in (["evaluate", "run", "--data", "a.npy"], ["train", "mine.yaml"], ["recipes", "show", "mine.yaml"]):
        ended = subprocess.run(
            [sys.executable, "-m", "davi", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,  # the start of an interpreter on a busy machine is not what is bounded here
            check=False,
        )
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended
        assert ended.stderr.startswith("davi: ")
        assert not (tmp_path / m.MARK).exists()
