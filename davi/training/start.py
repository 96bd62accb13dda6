"""Fine-tuning: which weights of another model are used, which are drawn anew, and what the protocol says.

Everything is taken over, weights and buffers. Only where the images have other channels or another number of levels
does the model keep its own, newly drawn layers for what depends on them: the first convolution and the one that gives
the pixels' parameters; and where they have other classes, those that the classes have a share in. The weights with
which a run begins are kept in its folder (``start.safetensors``): a run killed before its first checkpoint begins with
the same ones, whatever has become of the other model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from davi.config import to_dict
from davi.errors import UserError
from davi.files import digest, read_tensors, write_tensors, writing
from davi.layers import LikelihoodConfig, PixelLikelihood
from davi.layers.autoregressive_head import AutoregressiveHead
from davi.model import Network
from davi.model.meta import on_meta
from davi.runs import START, flat

HEAD = "likelihood"
"""The section of a model's options that says how its last layer is read."""


@dataclass(frozen=True)
class Start:
    """Where the weights come from with which a run begins.

    Arguments:
        name: the run or the file, as it was given.
        sha256: digest of its weights (:func:`davi.files.digest`), for a model of davi's own that of its file.
        kept: names of the weights and buffers that were taken over.
    """

    name: str
    sha256: str
    kept: frozenset[str]

    def protocol(self) -> dict[str, str]:
        """What the protocol of a run remembers of it."""
        return {"started_from": self.name, "started_from_sha256": self.sha256}


def take_over(model: Network, source: Network, name: str, new_classes: bool = False) -> tuple[Start, list[str]]:
    """Give a model the weights of another one of its kind.

    Arguments:
        model: newly built; changed in place.
        source: whose weights are taken.
        name: of the source, for messages.
        new_classes: the classes are others, though they may be as many.

    Returns:
        What was done, and lines for the user: what was drawn anew, which options differ.

    Raises:
        UserError: one line, if anything does not fit that does not depend on channels, levels and classes; nothing has
            been changed then.
    """
    if model.name != source.name:
        raise UserError(f"model.name: got {model.name}, expected {source.name} as in {name}")
    own, theirs = model.state_dict(), source.state_dict()
    changes = _changes(model, source)
    differing = _differing(own, theirs)
    anew = set() if _images(model) == _images(source) else _of_the_images(model, source)
    new_classes = bool(source.classes and model.classes) and (new_classes or model.classes != source.classes)
    unlike = _layout(model) != _layout(source) and not anew  # even if the shapes should be the same by chance
    if new_classes:
        anew |= _of_the_classes(source)
    if unlike or not differing <= anew:
        here, there = (f"images of {'x'.join(map(str, each.shape))}" for each in (model, source))
        changed = changes if model.shape == source.shape else {"images": f"{there} -> {here}", **changes}
        raise UserError(_misfit(sorted(differing - anew), own, theirs, changed, name))
    kept = frozenset(own.keys() - anew)
    with torch.no_grad():
        for key in kept:
            own[key].copy_(theirs[key])
    lines = [f"begins with the weights of {name}"]
    if drawn := dict.fromkeys(key.rpartition(".")[0] or key for key, _ in model.named_parameters() if key not in kept):
        pairs = zip(("channel", "level"), _images(model), _images(source), strict=True)
        other = [f"{own} {what}{'s' * (own != 1)} in place of {there}" for what, own, there in pairs if own != there]
        images = " and ".join(other)
        if new_classes:
            images += (" and " if images else "") + _classes(model, source)
        lines[0] += f"; drawn anew, since images have {images}: {', '.join(drawn)}"
    told = [change for option, change in changes.items() if not _of_the_last_layer(option)]
    if told:
        lines.append(f"options that differ from {name}: {', '.join(told)}")
    return Start(name, digest(theirs), kept), lines


def _classes(model: Network, source: Network) -> str:
    if model.classes == source.classes:
        return "other classes"
    return f"{model.classes} classes in place of {source.classes}"


def _images(model: Network) -> tuple[int, int]:
    """Channels and levels of a model's images."""
    return model.shape[0], model.levels


def _options(model: Network) -> dict[str, Any]:
    return flat({"model": to_dict(model.config)})


def _changes(model: Network, source: Network) -> dict[str, str]:
    """Each option that differs, with its values there and here."""
    here, there = _options(model), _options(source)
    return {key: f"{key} {there.get(key)} -> {here[key]}" for key in here if here[key] != there.get(key)}


def _of_the_last_layer(option: str) -> bool:
    """Whether an option only says how the last layer is read; those of a causal network say how it is computed."""
    own, network = f"model.{HEAD}.", f"model.{HEAD}.network."
    return option.startswith(f"{network}{HEAD}." if option.startswith(network) else own)


def _layout(model: Network) -> tuple[Any, ...]:
    """What the parameters of a pixel mean, and which causal network they are from in an autoregressive likelihood."""
    if not isinstance(model, PixelLikelihood):
        return (model.shape[0],)
    network, head = _network(model), model.head
    likelihood = head.network.head.likelihood if isinstance(head, AutoregressiveHead) else head.likelihood
    count: dict[str | None, int] = {"logistic_mixture": likelihood.components, "categorical": model.levels}
    return network, likelihood.family, count.get(likelihood.family), model.shape[0]


def _network(model: Network) -> str | None:
    """The name of the causal network in an autoregressive likelihood."""
    head = model.head if isinstance(model, PixelLikelihood) else None
    return head.network.name if isinstance(head, AutoregressiveHead) else None


def _likelihood(model: Network) -> LikelihoodConfig | None:
    """How a model's last layer is read; None where that is no question."""
    return model.head.likelihood if isinstance(model, PixelLikelihood) else None


def _of_the_images(model: Network, source: Network) -> set[str]:
    """Names of all that depends on channels and levels, found by building models that have others.

    The last layer belongs to it if its numbers mean something else, whether or not there are as many of them.
    """
    theirs = source.state_dict()
    likelihood = _likelihood(model)
    shape = (model.shape[0], *source.shape[1:])
    found = _differing(theirs, _on_paper(source, shape, model.levels, likelihood))
    if likelihood is None or _layout(model) == _layout(source):
        return found
    for components in (1, 2):  # one of the two numbers is not that of the source
        other = LikelihoodConfig("logistic_mixture", components)
        if likelihood.network is not None and _network(model) == _network(source):  # only its last layer
            options: Any = likelihood.network
            other = dataclasses.replace(likelihood, network=dataclasses.replace(options, likelihood=other))
        found |= _differing(theirs, _on_paper(source, source.shape, source.levels, other))
    return found


def _of_the_classes(source: Network) -> set[str]:
    """Names of all that depends on the number of classes, found by building a model that has one more."""
    more = _on_paper(source, source.shape, source.levels, None, source.classes + 1)
    return _differing(source.state_dict(), more)


def _on_paper(
    source: Network,
    shape: tuple[int, int, int],
    levels: int,
    likelihood: LikelihoodConfig | None,
    classes: int | None = None,
) -> dict[str, Tensor]:
    """The tensors of a model like another one, but for its images, its last layer and its classes."""
    cls: Any = type(source)
    config = source.config if likelihood is None else dataclasses.replace(source.config, **{HEAD: likelihood})
    with on_meta():
        state: dict[str, Tensor] = cls(shape, levels, config, classes or source.classes).state_dict()
    return state


def _differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> set[str]:
    """Names that only one has, or that stand for tensors of different shapes."""
    return {key for key in {*one, *other} if key not in one or key not in other or one[key].shape != other[key].shape}


def _misfit(
    wrong: list[str], own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], changes: Mapping[str, str], name: str
) -> str:
    """One line about weights that do not fit."""
    line = "model: its last layer does not mean the same"
    if wrong:
        here, there = (list(state[wrong[0]].shape) if wrong[0] in state else "nothing" for state in (own, theirs))
        line = f"model: {len(wrong)} weights do not fit: got {wrong[0]} {here}, expected {there}"
    options = f"; what differs: {', '.join(changes.values())}" if changes else ""
    return f"{line} as in {name}{options}"


def keep_start(run: Path, model: Network, start: Start | None) -> None:
    """Write the weights with which a run begins into its folder, if they are another model's.

    Raises:
        UserError: if they cannot be written.
    """
    if start is None:
        (run / START).unlink(missing_ok=True)  # of a run that was killed before it had begun
        return
    anew = sorted(model.state_dict().keys() - start.kept)
    info = {"started_from": start.name, "started_from_sha256": start.sha256, "anew": anew}
    with writing(f"{run}"):
        write_tensors(run / START, model.state_dict(), info)


def read_start(run: Path, model: Network) -> Start | None:
    """Give a model the weights with which its run begins, if it keeps any.

    Raises:
        UserError: one line, if they are damaged or of another model.
    """
    start, tensors = _read(run, model)
    with torch.no_grad():
        for key, x in model.state_dict().items() if start is not None else ():
            x.copy_(tensors[key])
    return start


def kept_weights(run: Path, model: Network) -> frozenset[str]:
    """Names of the weights that a run has from another model.

    Raises:
        UserError: as :func:`read_start` does.
    """
    start, _ = _read(run, model)
    return frozenset() if start is None else start.kept


def _read(run: Path, model: Network) -> tuple[Start | None, dict[str, Tensor]]:
    path = run / START
    if not path.exists():
        return None, {}
    tensors, info = read_tensors(path)
    own = model.state_dict()
    if _differing(own, tensors):
        raise UserError(f"{path}: got the weights of another model, expected those of the recipe")
    name, sha256, anew = (info.get(key) for key in ("started_from", "started_from_sha256", "anew"))
    if not isinstance(name, str) or not isinstance(sha256, str) or not isinstance(anew, list):
        raise UserError(f"{path}: does not say where the weights come from, expected a file of davi train --from")
    return Start(name, sha256, frozenset(own.keys() - set(map(str, anew)))), tensors
