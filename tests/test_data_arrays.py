"""Files from elsewhere: read whole, or refused in one line that names them."""

import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from davi.data.arrays import read_array, read_images
from davi.errors import UserError


def npy_bytes(header: str, data: bytes, version: tuple[int, int] = (1, 0)) -> bytes:
    """An NPY file written by hand from the format's description, independent of NumPy's writer."""
    text = header.encode("latin1") + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + data


def header(descr: str, shape: str, fortran: bool = False) -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


def refused(path: Path, match: str, levels: int | None = None) -> None:
    """The file is refused, in one line that begins with its path and contains the words."""
    with pytest.raises(UserError, match=match) as caught:
        read_images(path, levels, "set")
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("fortran", [False, True])
def test_hand_written_npy(tmp_path: Path, version: tuple[int, int], fortran: bool) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(npy_bytes(header("'|u1'", "(1, 2, 3)", fortran), bytes([1, 2, 3, 4, 5, 6]), version))
    # In C order the last index runs fastest, in Fortran order the first.
    expected = [[1, 3, 5], [2, 4, 6]] if fortran else [[1, 2, 3], [4, 5, 6]]
    assert read_array(path)[0].tolist() == expected


@pytest.mark.parametrize(
    ("dtype", "levels", "expected_levels", "expected_dtype"),
    [
        ("bool", None, 2, torch.uint8),
        ("uint8", None, 256, torch.uint8),
        ("uint8", 17, 17, torch.uint8),
        ("uint16", None, 65536, torch.int32),
        (">u2", None, 65536, torch.int32),
        ("int64", 256, 256, torch.uint8),
        (">i4", 257, 257, torch.int32),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_types_and_levels(
    tmp_path: Path, dtype: str, levels: int | None, expected_levels: int, expected_dtype: torch.dtype, suffix: str
) -> None:
    array = (np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5) % 2).astype(dtype)
    array[1, 2, 3, 4] = 1
    path = tmp_path / f"x{suffix}"
    if suffix == ".npy":
        np.save(path, array)
    else:
        np.savez_compressed(path, images=array, labels=np.zeros(2))
    images = read_images(path, levels, "set")
    assert (images.levels, images.pixels.dtype, images.shape, len(images)) == (
        expected_levels,
        expected_dtype,
        (5, 3, 4),
        2,
    )
    for n, h, w, c in np.ndindex(2, 3, 4, 5):
        assert images.pixels[n, c, h, w] == array[n, h, w, c]


def test_gray_gets_a_channel(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.save(tmp_path / "x.npy", array)
    images = read_images(tmp_path / "x.npy", None, "set")
    assert images.pixels.tolist() == array[:, None].tolist()


def test_large_array_crosses_the_reading_chunks(tmp_path: Path) -> None:
    # 34 MB: more than two chunks of 16 MiB, so that a mistake in putting them together would show.
    array = np.random.default_rng(0).integers(0, 256, (34, 1000, 1000), dtype=np.uint8)
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "x.npz", images=array)
    assert np.array_equal(read_array(tmp_path / "x.npy"), array)
    assert np.array_equal(read_array(tmp_path / "x.npz"), array)


def test_single_array_of_any_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", pictures=np.ones((2, 3, 3), np.uint8))
    assert len(read_images(tmp_path / "x.npz", None, "set")) == 2


def test_npz_lists_names_when_there_is_a_choice(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", first=np.ones((2, 3, 3), np.uint8), second=np.ones((2, 3, 3), np.uint8))
    refused(tmp_path / "x.npz", "found 'first', 'second', expected an array called 'images'")


def test_npz_without_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    refused(tmp_path / "x.npz", "found no array")


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint32", "uint64"])
def test_other_integers_ask_for_levels(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 3, 3), dtype))
    refused(tmp_path / "x.npy", f"data.levels: not given, and {dtype} in .* does not tell it")


@pytest.mark.parametrize(
    ("array", "levels", "match"),
    [
        (np.ones((2, 3, 3), np.float32), None, "got float32, expected whole numbers"),
        (np.ones((2, 3, 3), np.float64), 256, "got float64, expected whole numbers"),
        (np.ones((2, 3, 3), np.complex64), None, "got complex64, expected whole numbers"),
        (np.full((2, 3, 3), "a"), None, "expected whole numbers"),
        (np.zeros((2, 3, 3), [("a", "u1")]), None, "expected whole numbers"),
        (np.zeros((2, 3, 3), "datetime64[s]"), None, "expected whole numbers"),
        (np.ones((3, 3), np.uint8), None, r"got shape \(3, 3\), expected \[N, H, W\]"),
        (np.ones((2, 3, 3, 1, 1), np.uint8), None, r"expected \[N, H, W\] or \[N, H, W, C\]"),
        (np.uint8(1), None, r"got shape \(\)"),
        (np.ones((0, 3, 3), np.uint8), None, r"got shape \(0, 3, 3\), expected at least one image"),
        (np.ones((2, 3, 0), np.uint8), None, "expected at least one image and one pixel"),
        (np.ones((2, 3, 32, 32), np.uint8), None, r"looks like \[N, C, H, W\]"),
        (np.full((2, 3, 3), 17, np.uint8), 17, "got values 17 to 17, expected 0 to 16"),
        (np.full((2, 3, 3), -1, np.int64), 256, "got values -1 to -1, expected 0 to 255"),
        # 2**32 + 5 would pass as 5 if the values were narrowed before they are compared.
        (np.full((2, 3, 3), 2**32 + 5, np.int64), 256, "expected 0 to 255"),
        (np.full((2, 3, 3), 2**64 - 1, np.uint64), 65536, "expected 0 to 65535"),
    ],
)
def test_unfit_arrays(tmp_path: Path, array: np.ndarray, levels: int | None, match: str) -> None:
    np.save(tmp_path / "x.npy", array)
    refused(tmp_path / "x.npy", match, levels)
    np.savez(tmp_path / "x.npz", array)
    refused(tmp_path / "x.npz", match, levels)


class Trap:
    """Unpickling an instance makes a folder: a harmless stand-in for any command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    objects = np.empty((1, 1, 1), object)
    objects[0, 0, 0] = Trap(sprung)
    np.save(tmp_path / "array.npy", objects, allow_pickle=True)
    refused(tmp_path / "array.npy", "pickled Python objects, which are never opened")
    np.savez(tmp_path / "array.npz", images=objects, allow_pickle=True)
    refused(tmp_path / "array.npz", "pickled Python objects, which are never opened")
    for suffix in (".npy", ".npz"):
        plain = tmp_path / f"plain{suffix}"
        plain.write_bytes(pickle.dumps(Trap(sprung)))
        refused(plain, "cannot be read")
    assert not sprung.exists()
    pickle.loads((tmp_path / "plain.npy").read_bytes())  # the trap works, or the check above would prove nothing
    assert sprung.exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_truncation_is_refused(tmp_path: Path, suffix: str, packed: bool) -> None:
    array = np.random.default_rng(0).integers(0, 256, (2, 3, 4), dtype=np.uint8)
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    if suffix == ".npy":
        np.save(whole, array)
    else:
        (np.savez_compressed if packed else np.savez)(whole, images=array)
    data = whole.read_bytes()
    for length in range(len(data)):
        cut.write_bytes(data[:length])
        refused(cut, "expected")


def test_trailing_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    with path.open("wb") as file:
        np.save(file, np.ones((2, 3, 3), np.uint8))
        np.save(file, np.ones((2, 3, 3), np.uint8))
    refused(path, "holds .* bytes of data, expected 18 for uint8")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_damage_ends_in_one_line_or_in_images(tmp_path: Path, suffix: str, seed: int) -> None:
    """One to three random bytes are overwritten; nothing but a UserError may come out of it."""
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 2, (2, 5, 5), dtype=np.uint8)
    path = tmp_path / f"x{suffix}"
    if suffix == ".npy":
        np.save(path, array)
    else:
        np.savez_compressed(path, images=array)
    data = np.frombuffer(path.read_bytes(), np.uint8)
    messages = []
    for _ in range(200):
        damaged = data.copy()
        places = rng.integers(0, len(data), rng.integers(1, 4))
        damaged[places] = rng.integers(0, 256, len(places))
        path.write_bytes(damaged.tobytes())
        try:
            read_images(path, None, "set")
        except UserError as error:
            messages.append(str(error))
    assert messages
    assert all(str(path) in message and "\n" not in message for message in messages)


def test_damaged_data_in_an_archive_fails_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, images=np.full((2, 30, 30), 7, np.uint8))  # stored: the values stand in the file as they are
    data = bytearray(path.read_bytes())
    place = data.index(bytes([7] * 50))
    data[place] = 8
    path.write_bytes(bytes(data))
    refused(path, "CRC")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (header("'|u1'", "(100000000, 100000, 100000)"), "holds 16 bytes of data, expected 1000000000000000000 "),
        (header("'<u2'", f"({2**62}, 4, 4)"), "holds 16 bytes"),  # the product overflows 64 bits
        (header("'|u1'", "(-1, 4, 4)"), "expected at least one image"),
        (header("'|u1'", "(1, 4.0, 4)"), "cannot be read"),
        (header("'|u1'", "[1, 4, 4]"), "cannot be read"),
        (header("'nonsense'", "(1, 4, 4)"), "cannot be read"),
        ("{'descr': '|u1', 'shape': (1, 4, 4)}", "cannot be read"),
        ("__import__('os').abort()", "cannot be read"),
        ("(" * 9000, "cannot be read"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 4, 4), }" + " " * 60_000, "cannot be read"),
    ],
)
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_absurd_headers(tmp_path: Path, text: str, match: str, version: tuple[int, int]) -> None:
    (tmp_path / "x.npy").write_bytes(npy_bytes(text, bytes(16), version))
    refused(tmp_path / "x.npy", match)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("images.npy", npy_bytes(text, bytes(16), version))
    refused(tmp_path / "x.npz", match)


def test_unknown_format_version(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(npy_bytes(header("'|u1'", "(1, 4, 4)"), bytes(16), (9, 0)))
    refused(tmp_path / "x.npy", r"got NPY version \(9, 0\)")


def test_archive_that_promises_more_than_it_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, images=np.zeros((2, 30, 30), np.uint8))
    data = bytearray(path.read_bytes())
    # The central directory's entry: "PK\1\2", and the size when unpacked at offset 24 of it.
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", 2**32 - 2)
    path.write_bytes(bytes(data))
    refused(path, "promises 4294967294 bytes")


def test_unusual_packing_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("images.npy", npy_bytes(header("'|u1'", "(1, 4, 4)"), bytes(16)))
    refused(tmp_path / "x.npz", "got packing method 14")


def test_what_is_not_a_file(tmp_path: Path) -> None:
    refused(tmp_path / "missing.npy", "found nothing")
    (tmp_path / "folder.npz").mkdir()
    refused(tmp_path / "folder.npz", "found something that is not a file")
    os.mkfifo(tmp_path / "pipe.npy")  # opening a pipe that nobody writes to would wait without end
    refused(tmp_path / "pipe.npy", "found something that is not a file")
    (tmp_path / "x.txt").write_text("1 2 3")
    refused(tmp_path / "x.txt", "expected .npy or .npz")
    (tmp_path / "empty.npy").write_bytes(b"")
    refused(tmp_path / "empty.npy", "cannot be read")
    (tmp_path / "empty.npz").write_bytes(b"")
    refused(tmp_path / "empty.npz", "cannot be read")


@pytest.mark.parametrize("levels", [1, 65537, 0, -3, True, 2.0])
def test_levels_out_of_range(tmp_path: Path, levels: int) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(UserError, match=r"data\.levels: got .*, expected a whole number from 2 to 65536"):
        read_images(tmp_path / "x.npy", levels, "set")
