"""Weight files that are broken, foreign or hostile: refused in one line, and nothing is half loaded."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from authors_h5 import refused, write_small
from torch import Tensor

from davi.errors import UserError
from davi.published.attentive import keras_h5
from davi.published.attentive.files import import_h5


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("h5") / "small.h5")


@pytest.fixture
def own(small_file: Path, tmp_path: Path) -> Path:
    """A file of the small model."""
    return Path(shutil.copyfile(small_file, tmp_path / "own.h5"))


@pytest.fixture(params=["own", "official"])
def weights_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy, to be broken, of a good file: one of the small model, and one that the authors' program wrote."""
    if request.param == "own":
        path: Path = request.getfixturevalue("own")
        return path
    need: Callable[[str], Path] = request.getfixturevalue("need_shared")
    source = need("fixtures/attentive_h5/att_cifar_trained.h5")
    copy = tmp_path / "official.h5"
    shutil.copyfile(source, copy)
    return copy


def first(file: h5py.File, group: str, leaf: str) -> str:
    """Path of the first data set of a group with this last component."""
    names = [name.decode() for name in file[group].attrs["weight_names"]]
    return f"{group}/{next(name for name in names if name.endswith('/' + leaf) or name == leaf)}"


def replaced(file: h5py.File, path: str, value: Any, **options: Any) -> None:
    del file[path]
    file.create_dataset(path, data=value, **options)


def relisted(file: h5py.File, group: str, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Change the list of a group's data sets; '' is the list of groups."""
    holder, attribute = (file[group], "weight_names") if group else (file, "layer_names")
    holder.attrs[attribute] = np.array(change(list(holder.attrs[attribute])))


def swap(names: list[bytes], i: int, j: int) -> list[bytes]:
    names[i], names[j] = names[j], names[i]
    return names


def without_dataset(file: h5py.File) -> None:
    del file[first(file, "variational_layer_1", "kernel:0")]


def without_listed_dataset(file: h5py.File) -> None:
    del file[first(file, "variational_layer_1", "kernel:0")]
    relisted(
        file, "variational_layer_1", lambda names: [n for n in names if f"variational_layer_1/{n.decode()}" in file]
    )


def with_unlisted_dataset(file: h5py.File) -> None:
    file["data_layer/one/more"] = 1.0


def with_listed_dataset(file: h5py.File) -> None:
    file["data_layer/one/gamma:0"] = np.float32(1.0)
    relisted(file, "data_layer", lambda names: [*names, b"one/gamma:0"])


def with_layer_too_many(file: h5py.File) -> None:
    file.create_group("layer_normalization_99").attrs["weight_names"] = np.array([])
    relisted(file, "", lambda names: [*names, b"layer_normalization_99"])


def with_foreign_layer(file: h5py.File) -> None:
    file.create_group("dense").attrs["weight_names"] = np.array([b"kernel:0"])
    file["dense/kernel:0"] = np.ones((2, 2), np.float32)
    relisted(file, "", lambda names: [b"dense", *names])


def with_transposed(file: h5py.File) -> None:
    path = first(file, "variational_layer_1", "kernel:0")
    replaced(file, path, file[path][()].reshape(file[path].shape[::-1]))


def with_wider_layer(file: h5py.File) -> None:
    path = first(file, "variational_layer_2", "bias:0")
    replaced(file, path, np.append(file[path][()], np.float32(0)))


def with_nan(file: h5py.File) -> None:
    file[first(file, "res_net_1" if "res_net_1" in file else "res_net_3", "moving_mean:0")][-1] = np.nan


def with_infinity(file: h5py.File) -> None:
    file[first(file, "data_layer", "bias:0")][0] = np.inf


def of_type(dtype: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        path = first(file, "data_layer", "g:0")
        replaced(file, path, file[path][()].astype(dtype))

    return change


def with_text(file: h5py.File) -> None:
    replaced(file, first(file, "data_layer", "g:0"), ["many"], dtype=h5py.string_dtype())


def with_ragged(file: h5py.File) -> None:
    path = first(file, "data_layer", "g:0")
    del file[path]
    file.create_dataset(path, (9,), dtype=h5py.vlen_dtype(np.float32))


def with_nothing(file: h5py.File) -> None:
    path = first(file, "data_layer", "g:0")
    del file[path]
    file[path] = h5py.Empty("f4")


def with_weight_for_flag(file: h5py.File) -> None:
    replaced(
        file,
        first(file, "concat_conv2d" if "concat_conv2d" in file else "concat_conv2d_7", "initialized:0"),
        np.float32(1),
    )


def with_soft_link(file: h5py.File) -> None:
    path = first(file, "data_layer", "g:0")
    file.move(path, "data_layer/elsewhere")
    file[path] = h5py.SoftLink("/data_layer/elsewhere")


def with_external_link(file: h5py.File) -> None:
    path = first(file, "data_layer", "g:0")
    del file[path]
    file[path] = h5py.ExternalLink("other.h5", "/x")


def with_circle(file: h5py.File) -> None:
    file["data_layer/again"] = file["data_layer"]


def with_external_storage(file: h5py.File) -> None:
    path = first(file, "data_layer", "g:0")
    del file[path]
    file.create_dataset(path, (9,), dtype="f4", external=[("elsewhere.bin", 0, 36)])


def with_virtual_dataset(file: h5py.File) -> None:
    path = first(file, "data_layer", "g:0")
    del file[path]
    virtual = h5py.VirtualLayout((9,), dtype="f4")
    virtual[:] = h5py.VirtualSource("other.h5", "x", (9,))
    file.create_virtual_dataset(path, virtual)


def with_compression(file: h5py.File) -> None:
    path = first(file, "variational_layer", "constant:0")
    replaced(file, path, file[path][()], compression="gzip")


def with_enormous_shape(file: h5py.File) -> None:
    path = first(file, "variational_layer", "constant:0")
    del file[path]
    file.create_dataset(path, (1, 2**20, 2**20, 2**20), dtype="f4", chunks=(1, 1, 1, 8))


def with_unwritten_data(file: h5py.File) -> None:
    path = first(file, "data_layer", "g:0")
    shape = file[path].shape
    del file[path]
    file.create_dataset(path, shape, dtype="f4")


def with_many_names_for_the_same_bytes(file: h5py.File) -> None:
    largest = file[first(file, "variational_layer", "kernel:0")]
    for i in range(1000):
        file[f"copies/{i}"] = largest
    file["copies"].attrs["weight_names"] = np.array([str(i).encode() for i in range(1000)])
    relisted(file, "", lambda names: [*names, b"copies"])


def with_renamed(file: h5py.File) -> None:
    path = first(file, "data_layer", "gamma:0")
    group, _, name = path.partition("/")
    file.move(path, path.replace("gamma:0", "delta:0"))
    relisted(file, group, lambda names: [n.replace(b"gamma:0", b"delta:0") if n == name.encode() else n for n in names])


def with_control_characters(file: h5py.File) -> None:
    relisted(file, "data_layer", lambda names: [b"\x1b[2J\nhello\xff", *names])


def without_layer_names(file: h5py.File) -> None:
    del file.attrs["layer_names"]


def without_weight_names(file: h5py.File) -> None:
    del file["variational_layer_2"].attrs["weight_names"]


def with_number_for_names(file: h5py.File) -> None:
    file.attrs["layer_names"] = 7


def with_numbers_for_names(file: h5py.File) -> None:
    file["data_layer"].attrs["weight_names"] = [1, 2, 3]


def with_group_for_weight(file: h5py.File) -> None:
    path = first(file, "data_layer", "g:0")
    del file[path]
    file.create_group(path)


def with_type_for_weight(file: h5py.File) -> None:
    path = first(file, "data_layer", "g:0")
    del file[path]
    file[path] = np.dtype("f4")


BROKEN: dict[Callable[[h5py.File], None], str] = {
    without_dataset: "kernel:0', but does not hold it",
    without_listed_dataset: "group 'variational_layer_2' has",
    with_unlisted_dataset: "holds the data set 'data_layer/one/more', which no layer lists",
    with_listed_dataset: "group 'data_layer' has",
    with_layer_too_many: "group 'layer_normalization_99' is one too many",
    with_foreign_layer: "group 0 is 'dense', expected concat_conv2d; is it the authors' Deep Attentive VAE?",
    with_transposed: "group 'variational_layer_1': ",
    with_wider_layer: "group 'variational_layer_2': ",
    with_nan: "/moving_mean holds values that are not finite",
    with_infinity: "/bias holds values that are not finite",
    of_type(np.float64): "holds float64, expected float32",
    of_type(np.float16): "holds float16, expected float32",
    of_type(np.int32): "holds int32, expected float32",
    with_text: "holds object, expected float32",
    with_ragged: "holds object, expected float32",
    with_nothing: "g:0' is empty",
    with_weight_for_flag: "/initialized:0' is float32 of shape [], expected initialized:0, bool of shape []",
    with_soft_link: "is a link to somewhere else",
    with_external_link: "is a link to somewhere else",
    with_circle: "nests groups more than 64 deep",
    with_external_storage: "is kept in another file",
    with_virtual_dataset: "is kept in another file",
    with_compression: "is compressed",
    with_enormous_shape: "has shape [1, 1048576, 1048576, 1048576], but the file holds only 0 bytes of it",
    with_unwritten_data: "but the file holds only 0 bytes of it",
    with_many_names_for_the_same_bytes: "bytes of weights, more than the",
    with_renamed: "delta:0",
    with_control_characters: "but does not hold it",
    without_layer_names: "has no attribute layer_names",
    without_weight_names: "group 'variational_layer_2' has no attribute weight_names",
    with_number_for_names: "attribute layer_names is not a list of names",
    with_numbers_for_names: "attribute weight_names is not a list of names",
    with_group_for_weight: "g:0', but does not hold it",
    with_type_for_weight: "is neither a group nor a data set",
    lambda file: relisted(file, "", lambda names: names[:-1]): "holds the data set 'layer_normalization_",
    lambda file: relisted(file, "", lambda names: swap(names, 3, 4)): "group 'variational_layer_2' has",
    lambda file: relisted(file, "", lambda names: [*names, names[0]]): "layer_names lists a layer twice",
    lambda file: relisted(file, "", lambda names: [*names, b"none"]): "lists the layer 'none', but has no such group",
    lambda file: relisted(file, "", lambda names: [*names, b".."]): "lists the layer '..', but has no such group",
    lambda file: relisted(file, "", lambda names: []): "which no layer lists",
    lambda file: relisted(file, "data_layer", lambda names: swap(names, 0, 1)): "group 'data_layer': ",
    lambda file: relisted(file, "data_layer", lambda names: [*names, names[0]]): "weight_names lists a data set twice",
}
"""What is done to a good file -> part of the message."""


@pytest.mark.parametrize("change", BROKEN, ids=lambda change: change.__name__.strip("<>"))
def test_broken_files_are_refused_in_one_line(weights_file: Path, change: Callable[[h5py.File], None]) -> None:
    with h5py.File(weights_file, "a") as file:
        change(file)
    refused(weights_file, BROKEN[change])


def test_a_file_without_layers_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file.attrs["layer_names"] = np.array([])
    refused(tmp_path / "empty.h5", "there are only 0 groups, expected concat_conv2d")


def test_files_that_are_no_hdf5_are_refused_in_one_line(weights_file: Path, tmp_path: Path) -> None:
    content = weights_file.read_bytes()
    bad = tmp_path / "bad.h5"
    refused(bad, "no such file")
    refused(tmp_path, "is a folder, expected a file of weights")
    for text in (b"", b"weights: none", content[8:]):
        bad.write_bytes(text)
        refused(bad, "not an HDF5 file")
    for length in (9, 100, len(content) // 2, len(content) - 1):
        bad.write_bytes(content[:length])
        refused(bad, "damaged or truncated HDF5 file")


def test_damaged_bytes_are_refused_in_one_line_or_change_numbers_alone(own: Path) -> None:
    """Whatever byte of the file's structure is wrong: one line, or a complete model."""
    content = own.read_bytes()
    keys = import_h5(own)[3].keys()
    generator = np.random.default_rng(5)
    structure = [m.start() for m in re.finditer(rb"TREE|HEAP|SNOD|weight_names|layer_names", content)]
    refusals: list[str] = []
    for _ in range(20):
        damaged = bytearray(content)
        place = min(int(generator.choice(structure)) + int(generator.integers(-60, 200)), len(content) - 1)
        damaged[place] ^= int(generator.integers(1, 256))
        own.write_bytes(damaged)
        try:
            assert import_h5(own)[3].keys() == keys
        except UserError as error:
            refusals.append(str(error))
    assert len(refusals) > 3
    assert all(text.isprintable() for text in refusals)


def test_nothing_is_read_before_everything_is_checked(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(own, "a") as file:
        path = first(file, "layer_normalization_14", "beta:0")  # the last of the file
        replaced(file, path, file[path][()].astype(np.float64))

    def no_reading(dataset: Any) -> Tensor:
        raise AssertionError(f"read {dataset.name}")

    monkeypatch.setattr(keras_h5, "_tensor", no_reading)
    refused(own, "holds float64, expected float32")


def test_without_h5py_one_line_says_what_to_install(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras_h5, "h5py", None)
    refused(own, "pip install -e '.[import]'")
