"""Checkpoints, written atomically: a kill leaves the old or the new one.

A checkpoint is a folder ``step-00001234`` with ``model.safetensors`` (the weights being trained),
``average.safetensors`` (the averaged model in the form of the final file), ``optimizer.safetensors``,
``others.safetensors`` (the random generator of the data), and ``state.json``. It is written into a folder beside,
flushed to the disk, and renamed. Every file carries a digest, so damage that happens later is noticed, and the
checkpoint before is used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from davi.data import check_same
from davi.errors import UserError
from davi.files import read_tensors, remove_folder, replace_text, sync_folder, write_tensors, writing
from davi.runs import AVERAGE, CHECKPOINTS, PrintFunction, checkpoint_folders, save_model
from davi.training.state import State, Tensors

FORMAT = 2
MODEL, OPTIMIZER, OTHERS, NUMBERS = "model.safetensors", "optimizer.safetensors", "others.safetensors", "state.json"
_TEMPORARY = (".new-", ".old-")
_REPLACED = ".was-"
"""A whole checkpoint on its way out: another one of the same step takes its name next."""


def save(run: Path, state: State, tensors: Tensors, keep: int, extra: Mapping[str, Any]) -> Path:
    """Write a checkpoint of this instant and remove the oldest beyond ``keep``.

    Arguments:
        run: the run's folder.
        state: what to save.
        tensors: its own (:meth:`davi.training.state.State.tensors`).
        keep: how many checkpoints stay.
        extra: what the averaged model's file shall say besides its description.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: if it cannot be written; the checkpoints from before are untouched then.
    """
    target = folder_of(run, state.step)
    beside = target.with_name(_TEMPORARY[0] + target.name)
    replaced = target.with_name(_REPLACED + target.name)
    try:
        with writing(f"checkpoint {target}"):
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            _write(beside, state, tensors, extra)
            if target.exists():  # it must not be gone before the new one is there: it may be the only one
                shutil.rmtree(replaced, ignore_errors=True)
                target.replace(replaced)
            beside.replace(target)
            sync_folder(target.parent)
            shutil.rmtree(replaced, ignore_errors=True)
    except UserError as error:
        shutil.rmtree(beside, ignore_errors=True)
        last = [folder for folder in checkpoint_folders(run) if folder != target]
        good = f"; last good checkpoint: {last[-1]}" if last else "; there is no earlier checkpoint"
        raise UserError(str(error) + good) from None
    prune(run, state.step, keep)
    return target


def prune(run: Path, step: int, keep: int) -> None:
    """Remove the oldest checkpoints beyond ``keep``, counted from that of ``step``.

    Newer ones can only be damaged ones that a resumption passed over; the run will replace them when it gets there.
    """
    older = [folder for folder in checkpoint_folders(run) if folder.name < folder_of(run, step).name]
    for folder in older[: max(0, len(older) + 1 - keep)]:
        remove_folder(folder)


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return run / CHECKPOINTS / f"step-{step:08d}"


def _write(folder: Path, state: State, tensors: Tensors, extra: Mapping[str, Any]) -> None:
    write_tensors(folder / MODEL, tensors.model, {})
    save_model(folder / AVERAGE, state.average.model, {**extra, "step": state.step}, tensors.average)
    write_tensors(folder / OPTIMIZER, tensors.optimizer, {})
    write_tensors(folder / OTHERS, state.others(), {})
    numbers = {"format": FORMAT, **state.numbers()}
    replace_text(folder / NUMBERS, json.dumps({"sha256": _digest(numbers), "state": numbers}) + "\n")


def _digest(numbers: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()


def exist(run: Path) -> bool:
    """Whether there are checkpoints to go on from; what a killed process left half-written is removed first."""
    _tidy(run)
    return bool(checkpoint_folders(run))


def resume(run: Path, state: State, protocol: Mapping[str, Any], print_fn: PrintFunction) -> bool:
    """Put ``state`` where the newest whole checkpoint was taken.

    Arguments:
        run: the run's folder.
        state: a fresh state of the same recipe; changed only once a checkpoint has been read completely.
        protocol: of the images at hand, which must be those the run was begun with.
        print_fn: receives a line for each damaged checkpoint that is skipped.

    Returns:
        Whether there was a checkpoint; if not, ``state`` is as it was.

    Raises:
        UserError: if there are checkpoints and none of them can be used, or they belong to other images.
    """
    _tidy(run)
    folders = checkpoint_folders(run)
    trouble = ""
    for folder in reversed(folders):
        try:
            begun, parts = _read(folder, state)
        except UserError as error:
            trouble = str(error)
            print_fn(f"{trouble}; trying the checkpoint before it")
            continue
        check_same(begun, protocol, "go on with the images it was begun with, or begin another run")
        _apply(parts, state)
        return True
    if folders:
        raise UserError(f"run: no checkpoint in {run / CHECKPOINTS} can be used; the last error was: {trouble}")
    return False


def _tidy(run: Path) -> None:
    """Remove what a kill left behind, and restore a checkpoint that was being replaced."""
    for replaced in (run / CHECKPOINTS).glob(_REPLACED + "*"):
        target = replaced.with_name(replaced.name.removeprefix(_REPLACED))
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            replaced.replace(target)
    for prefix in _TEMPORARY:
        for folder in (run / CHECKPOINTS).glob(prefix + "*"):
            shutil.rmtree(folder, ignore_errors=True)


Parts = tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]


def _read(folder: Path, state: State) -> tuple[dict[str, Any], Parts]:
    """The protocol and everything else in a checkpoint, checked as far as it can be before anything is changed."""
    path = folder / NUMBERS
    try:
        if not path.is_file():  # a pipe or a device would be read without end
            raise ValueError("no such file")
        content = json.loads(path.read_text(encoding="utf-8"))
        numbers = content["state"]
        if content["sha256"] != _digest(numbers):
            raise ValueError("SHA-256 differs")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({' '.join(str(error).split())[:150]})") from None
    if numbers["format"] != FORMAT:
        raise UserError(f"{path}: got format {numbers['format']}, expected {FORMAT}; another version of davi wrote it")
    model, optimizer, others = (read_tensors(folder / name)[0] for name in (MODEL, OPTIMIZER, OTHERS))
    average, info = read_tensors(folder / AVERAGE)
    protocol = info.get("protocol", {})
    if not isinstance(protocol, dict):
        raise UserError(f"{folder / AVERAGE}: got protocol {str(protocol)[:50]!r}, expected a mapping")
    wanted = {name: tensor.shape for name, tensor in state.model.state_dict().items()}
    for name, tensors in ((MODEL, model), (AVERAGE, average)):
        if {key: tensor.shape for key, tensor in tensors.items()} != wanted:
            raise UserError(f"{folder / name}: got the weights of another model, expected those of the recipe")
    return protocol, (numbers, model, average, optimizer, others)


def _apply(parts: Parts, state: State) -> None:
    numbers, model, average, optimizer, others = parts
    state.load_numbers(numbers)  # the two that can refuse, for another batch size, other images, another objective,
    state.load_others(others)  # come before the weights
    state.load_tensors(Tensors(model, average, optimizer))
