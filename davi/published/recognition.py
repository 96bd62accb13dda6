"""What a file of weights seems to be, told by its content, for those who ask for it as something else."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from davi.data.arrays import array_names
from davi.errors import UserError
from davi.published import rbm
from davi.published.nvae import names as nvae
from davi.published.torch_files import check_file, load_state, safetensors_header, weights_among
from davi.published.vdvae import names as vdvae

Kind = Literal["attentive", "nvae", "vdvae", "rbm", "davi", "optimizer"]

_HDF5 = b"\x89HDF\r\n\x1a\n"

WORDS: dict[Kind, str] = {
    "attentive": "a Keras file (HDF5)",
    "nvae": "an NVAE checkpoint",
    "vdvae": "a VDVAE checkpoint",
    "rbm": "the arrays of an RBM (.npz)",
    "davi": "a model that davi wrote",
    "optimizer": "the state of an optimizer",
}
REMEDIES: dict[Kind, str] = {
    "attentive": "davi import attentive reads it",
    "nvae": "davi import nvae reads it",
    "vdvae": "davi import vdvae reads it",
    "rbm": "davi import rbm reads it",
    "davi": "davi evaluate and davi train --from use it as it is",
    "optimizer": "the weights are in the file next to it, *-model.th or *-model-ema.th",
}


def recognized(path: Path) -> Kind | None:
    """The kind of a file; None if it cannot be told.

    Raises:
        UserError: if there is no such file, or it cannot be read.
    """
    check_file(path)
    try:
        with path.open("rb") as file:
            if file.read(len(_HDF5)) == _HDF5:
                return "attentive"
        if _is_ours(safetensors_header(path)):
            return "davi"
        archive = zipfile.is_zipfile(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        if archive and rbm.are_names(array_names(path)):
            return "rbm"
        return _of_torch(load_state(path))
    except UserError:
        return None


def _is_ours(header: bytes | None) -> bool:
    """Whether a safetensors file says of itself that davi wrote it."""
    try:
        metadata = json.loads(header or b"{}").get("__metadata__", {})
    except (ValueError, AttributeError, RecursionError):
        return False
    return isinstance(metadata, Mapping) and "davi" in metadata


def _of_torch(loaded: Any) -> Kind | None:
    if isinstance(loaded, Mapping) and {"state", "param_groups"} == set(loaded):
        return "optimizer"
    forms: dict[Kind, Any] = {"nvae": nvae.are_names, "vdvae": vdvae.are_names}
    for kind, known in forms.items():
        try:
            weights_among(loaded, known)
        except UserError:
            continue
        return kind
    return None
