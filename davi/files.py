"""Atomic writing of files, and files of tensors with a digest.

Everything is written beside its final name, flushed to the disk and renamed. Tensors are safetensors, which cannot
carry code. Their metadata holds one entry, ``davi``: JSON with whatever the writer adds, and the tensors' SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from davi.errors import UserError


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Turns the error of a full or read-only disk into one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{what}: cannot be written ({reason})") from None


def replace_text(path: Path, text: str) -> None:
    """Write a text file so that, at any instant, its name stands for the old or the new text."""
    beside = path.with_name(path.name + ".new")
    with beside.open("w", encoding="utf-8", errors="backslashreplace") as file:  # a path may have bytes of no text
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
    """Write tensors with JSON metadata and their digest, to be read by :func:`read_tensors`.

    The file appears under its name only when it is complete and on the disk.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    beside = path.with_name(path.name + ".new")
    text = json.dumps({**info, "sha256": digest(plain)})
    beside.touch()  # with the permissions of any other file; safetensors would make it readable by the owner alone
    mode = beside.stat().st_mode
    save_file(plain, beside, {"davi": text})
    beside.chmod(mode)
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.replace(path)
    sync_folder(path.parent)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file of :func:`write_tensors`.

    Raises:
        UserError: one line that begins with the path, if the file is missing, cut off, changed, or of another program.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            info = _metadata(path, file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except (SafetensorError, OSError, RuntimeError, ValueError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a complete safetensors file ({' '.join(str(error).split())[:150]})") from None
    if digest(tensors) != info.pop("sha256", None):
        raise UserError(f"{path}: the tensors are not those that were written (SHA-256 differs); the file is damaged")
    return tensors, info


def stated_digest(path: Path) -> str:
    """The :func:`digest` of the tensors of a file, as it states it; only :func:`read_tensors` finds out if it is true.

    Raises:
        UserError: as :func:`read_tensors` does, but for damage to the tensors.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            stated = _metadata(path, file.metadata()).get("sha256")
    except (SafetensorError, OSError, RuntimeError, MemoryError) as error:
        raise UserError(f"{path}: not a complete safetensors file ({' '.join(str(error).split())[:150]})") from None
    if not isinstance(stated, str):
        raise UserError(f"{path}: got no SHA-256 of its tensors, expected a file written by davi")
    return stated


def _metadata(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        info = json.loads((metadata or {})["davi"])
    except (KeyError, ValueError, RecursionError):
        info = None
    if not isinstance(info, dict):
        raise UserError(f"{path}: got no davi metadata, expected a file written by davi")
    return info


def remove_folder(folder: Path) -> None:
    """Delete a folder atomically: its name never stands for half of its content."""
    if folder.exists():
        doomed = folder.with_name(".old-" + folder.name)
        shutil.rmtree(doomed, ignore_errors=True)
        folder.replace(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
