"""The forms in which weights are published, and who reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from davi.errors import UserError
from davi.models import NVAE, RBM, AttentiveVAE, VeryDeepVAE
from davi.published.attentive.files import import_h5
from davi.published.nvae.files import import_nvae
from davi.published.rbm import import_rbm
from davi.published.reader import Given, Imported
from davi.published.recognition import REMEDIES, WORDS, Kind, recognized
from davi.published.torch_files import check_file
from davi.published.vdvae.files import NORMALIZATION, import_vdvae


@dataclass(frozen=True)
class Form:
    """A form of weight files.

    Arguments:
        model: name of the model they are for.
        read: reads one; raises :class:`davi.errors.UserError`, one line that begins with the path, unless all of it
            fits.
    """

    model: str
    read: Callable[[Path, Given], Imported]
    untold: tuple[str, ...] = ()
    """Options of the model that no such file tells and without which its numbers would be wrong: never a default."""
    shapeless: bool = False
    """Such a file need not tell the shape of the images, and the user may give it."""


_ATTENTIVE_SETS: dict[tuple[tuple[int, int, int], int], dict[str, Any]] = {
    ((3, 32, 32), 256): {"set": "cifar10"},
    ((1, 28, 28), 2): {"set": "omniglot28", "binarization": "dynamic"},
}
"""The sets for which the authors published weights."""


def _attentive(path: Path, given: Given) -> Imported:
    shape, levels, config, state, notes = import_h5(path, given.options)
    data: Mapping[str, Any] = _ATTENTIVE_SETS.get((shape, levels), {})
    return Imported(shape, levels, config, state, tuple(notes), data)


IMPORTERS: dict[Kind, Form] = {
    "attentive": Form(AttentiveVAE.name, _attentive),
    "nvae": Form(NVAE.name, import_nvae),
    "vdvae": Form(VeryDeepVAE.name, import_vdvae, NORMALIZATION),
    "rbm": Form(RBM.name, import_rbm, shapeless=True),
}
"""Name of a form, as ``davi import`` takes it -> who reads it."""


def read_weights(form: Kind, path: Path, given: Given) -> Imported:
    """A file of weights as everything that a run needs.

    Arguments:
        form: a key of :data:`IMPORTERS`.
        path: the file.
        given: what is known about it.

    Raises:
        UserError: one line that begins with the path, if it is no such file or not all of it fits; if it seems to be of
            another form, that is what the line says.
    """
    check_file(path)
    try:
        return IMPORTERS[form].read(path, given)
    except UserError:
        kind = recognized(path)
        if kind is None or kind == form:
            raise
        raise UserError(f"{path}: looks like {WORDS[kind]}, expected {WORDS[form]}; {REMEDIES[kind]}") from None
