"""Configurations and weights of the authors' implementation of NVAE, in ours.

The authors' code (PyTorch, github.com/NVlabs/NVAE) is configured by one flat set of options. This module translates it
into :class:`NVAEConfig` and the names of our parameters into theirs (``dec_tower.3._ops.0.conv.0.bn.weight``).

References:
    NVAE: A Deep Hierarchical Variational Autoencoder, A. Vahdat, J. Kautz, NeurIPS 2020,
    https://arxiv.org/abs/2007.03898
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any

from torch import Tensor

from davi.errors import UserError
from davi.layers.nvae_cells import Cell, DoubleAndHalve
from davi.layers.pixel_head import Form, LikelihoodConfig, PixelHead
from davi.layers.residual import FactorizedReduce
from davi.models.nvae import NVAE, Group, NVAEConfig
from davi.published.vdvae import names as vdvae

BINARY = ("mnist", "omniglot")
"""The authors' sets of binary images, 28x28 with two zeros on each side."""

ALIAS = ".weight_normalized"
"""How the names of second copies end: convolutions without weight normalization are stored twice."""

_OLD_FILES = {"ada_groups": False, "min_groups_per_scale": 1, "num_mixture_dec": 10, "num_x_bits": 8, "num_nf": 0}
"""What options are that older files do not have."""

_MOST_PARTS = 4096
"""Groups, cells and pairs of shifts that a configuration may have: some ten times what any published one has."""

_LEAVES = {"v": "weight", "log_g": "log_weight_norm"}


def configuration(options: Mapping[str, Any], form: Form = "exact") -> tuple[int, NVAEConfig]:
    """Levels and options of our model for theirs; their images of binary sets are padded already.

    Arguments:
        options: theirs, by their names (``num_channels_enc``, ...).
        form: form of the discretized logistics; ``"nvae"`` is theirs.

    Raises:
        UserError: if one is missing or has a value this library does not have.
    """
    given = {**_OLD_FILES, **options}
    try:
        binary = given["dataset"] in BINARY
        number = _numbers(given, binary)
        config = NVAEConfig(
            groups=_groups(number, bool(given["ada_groups"])),
            latent_channels=number["num_latent_per_group"],
            encoder_width=number["num_channels_enc"],
            decoder_width=number["num_channels_dec"],
            halvings=number["num_preprocess_blocks"],
            preprocess_cells=number["num_preprocess_cells"],
            postprocess_cells=number["num_postprocess_cells"],
            encoder_cells=number["num_cell_per_cond_enc"],
            decoder_cells=number["num_cell_per_cond_dec"],
            squeeze_excite=bool(given["use_se"]),
            residual_posterior=bool(given["res_dist"]),
            shifts=number["num_nf"],
            pad=0,
            likelihood=LikelihoodConfig("bernoulli", 1)
            if binary
            else LikelihoodConfig("logistic_mixture", number["num_mixture_dec"], form),
        )
        _check_size(config)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise UserError(f"configuration: {reason}; expected the authors' options") from error
    return 2 if binary else 2 ** number["num_x_bits"], config


def _numbers(given: Mapping[str, Any], binary: bool) -> dict[str, int]:
    """Their options that are numbers, if all are those of a model that we have."""
    if given["arch_instance"] != "res_mbconv":
        raise UserError(f"configuration: arch_instance is {given['arch_instance']!r}, expected 'res_mbconv'")
    number = {name: int(x) for name, x in given.items() if name.startswith(("num_", "min_")) and x is not None}
    if number["num_preprocess_blocks"] != number["num_postprocess_blocks"]:
        raise UserError(
            f"configuration: num_postprocess_blocks is {number['num_postprocess_blocks']}, expected "
            f"{number['num_preprocess_blocks']} as num_preprocess_blocks"
        )
    if not 1 <= number["num_x_bits"] <= 8:
        raise UserError(f"configuration: num_x_bits is {number['num_x_bits']}, expected 1 to 8")
    if not binary and number["num_mixture_dec"] < 2:
        raise UserError(
            "configuration: num_mixture_dec is 1, a density over real numbers, expected at least 2 logistics"
        )
    return number


def _check_size(config: NVAEConfig) -> None:
    """Before a model is built whose building would not end."""
    per_group = 1 + config.encoder_cells + config.decoder_cells + config.shifts
    per_halving = config.preprocess_cells + config.postprocess_cells
    if (parts := sum(config.groups) * per_group + config.halvings * per_halving) > _MOST_PARTS:
        raise UserError(f"configuration: has {parts} groups and cells, expected at most {_MOST_PARTS}")


def _groups(number: Mapping[str, int], adaptive: bool) -> tuple[int, ...]:
    """Groups per scale, coarsest first; theirs begin with the finest, and may have half as many at each further one."""
    scales, finest, fewest = (
        number[name] for name in ("num_latent_scales", "num_groups_per_scale", "min_groups_per_scale")
    )
    if not 1 <= scales <= 32:
        raise ValueError(f"num_latent_scales is {scales}, expected 1 to 32")
    groups = [finest]
    for _ in range(scales - 1):
        groups.append(max(groups[-1] // 2, fewest) if adaptive else finest)
    return tuple(reversed(groups))


def _cell(cell: Cell, ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    """Our names of a cell's modules, and theirs."""
    if isinstance(cell.skip, FactorizedReduce):
        yield from ((f"{ours}.skip.convs.{j}", f"{theirs}.skip.conv_{j + 1}") for j in range(4))
    if isinstance(cell.skip, DoubleAndHalve):
        yield f"{ours}.skip.conv", f"{theirs}.skip.1"
    yield f"{ours}.squeeze_excite.squeeze", f"{theirs}.se.se.0"
    yield f"{ours}.squeeze_excite.excite", f"{theirs}.se.se.2"
    if len(cell.body) == 6:  # of the encoder: twice batch norm, swish, convolution
        for half in (0, 1):
            yield f"{ours}.body.{3 * half}", f"{theirs}._ops.{half}.bn_act"
            yield f"{ours}.body.{3 * half + 2}", f"{theirs}._ops.{half}.conv_0"
        return
    first = len(cell.body) - 9  # 1 if it begins with an upsampling
    places = ("0.bn", "1.conv.0", "1.conv.1", None, "2.conv.0", "2.conv.1", None, "3", "4.bn")
    for position, place in enumerate(places):
        if place is not None:
            number, dot, rest = place.partition(".")
            yield f"{ours}.body.{first + position}", f"{theirs}._ops.0.conv.{int(number) + first}{dot}{rest}"


def _modules(model: NVAE) -> Iterator[tuple[str, str]]:
    """Our names of all modules with parameters, and theirs."""
    yield from {"stem": "stem", "top.hidden": "enc0.1", "top.posterior": "enc_sampler.0"}.items()
    yield "output", "image_conditional.1"
    for ours, theirs in (("preprocess", "pre_process"), ("postprocess", "post_process")):
        for n, cell in enumerate(model.get_submodule(ours).children()):
            assert isinstance(cell, Cell)
            yield from _cell(cell, f"{ours}.{n}", f"{theirs}.{n}")
    yield from _encoder(model)
    yield from _decoder(model)
    for i, pairs in enumerate(model.shifts):
        length = len(pairs.get_submodule("shifts")._modules)
        for j in range(length):
            ours, theirs = f"shifts.{i}.shifts.{j}", f"nf_cells.{i * length // 2 + j // 2}.cell{j % 2 + 1}"
            yield f"{ours}.spread", f"{theirs}.conv.convz.0"
            yield f"{ours}.look", f"{theirs}.conv.convz.2"
            yield f"{ours}.mean", f"{theirs}.mu.conv_0"


def _encoder(model: NVAE) -> Iterator[tuple[str, str]]:
    """The authors number the way up from the image, and count what joins it with the way down as part of it."""
    number = count()
    for i in reversed(range(model.num_layers)):
        for n, cell in enumerate(model.encoder[i].children()):
            assert isinstance(cell, Cell)
            yield from _cell(cell, f"encoder.{i}.{n}", f"enc_tower.{next(number)}")
        if i:
            yield f"groups.{i - 1}.from_context", f"enc_tower.{next(number)}.conv"


def _decoder(model: NVAE) -> Iterator[tuple[str, str]]:
    if model.config.single:
        yield "merge.0", "stem_decoder"
        return
    number = count()
    yield "merge.0", f"dec_tower.{next(number)}.conv"
    for i, group in enumerate(model.groups):
        assert isinstance(group, Group)
        yield f"groups.{i}.prior", f"dec_sampler.{i}.1"
        yield f"groups.{i}.posterior", f"enc_sampler.{i + 1}"
        for n, cell in enumerate(group.cells.children()):
            assert isinstance(cell, Cell)
            yield from _cell(cell, f"groups.{i}.cells.{n}", f"dec_tower.{next(number)}")
        yield f"merge.{i + 1}", f"dec_tower.{next(number)}.conv"


def are_names(names: Iterable[str]) -> bool:
    """Whether these seem to be the names of weights of the authors' NVAE."""
    return any(name.startswith(("enc_sampler.", "dec_tower.", "image_conditional.")) for name in names)


def parameter_names(model: NVAE) -> dict[str, str]:
    """The authors' name -> our name, for all that the authors store: not the vectors of the spectral penalty."""
    modules = dict(_modules(model))
    names = {} if model.start is None else {"prior_ftr0": "start"}
    for key in model.state_dict():
        module, _, leaf = key.rpartition(".")
        if module in modules:
            names[f"{modules[module]}.{_LEAVES.get(leaf, leaf)}"] = key
    return names


def without_aliases(weights: Mapping[str, Any], single: bool) -> dict[str, Any]:
    """What counts of the tensors of a file, in the shapes of ours.

    Arguments:
        weights: the authors' state dictionary.
        single: whether the model has one group; then their constant at the top is there without any influence.
    """
    found = {str(name): x for name, x in weights.items() if not str(name).endswith(ALIAS)}
    if single:
        found.pop("prior_ftr0", None)
    for name, x in found.items():
        if not isinstance(x, Tensor):
            continue
        if name.endswith(".log_weight_norm") and x.ndim == 4 and x.shape[1:].numel() == 1:
            found[name] = x.reshape(-1)
        elif name == "prior_ftr0":
            found[name] = x.unsqueeze(0)
    return found


def head_order(head: PixelHead) -> list[int]:
    """Where each of our likelihood parameters stands among theirs, which is as in the Very Deep VAE."""
    return vdvae.head_order(head) if head.likelihood.family == "logistic_mixture" else list(range(head.inputs))


def to_our_layout(state: Mapping[str, Tensor], head: PixelHead) -> dict[str, Tensor]:
    """Weights by our names, with the rows of the last convolution in our order."""
    order = head_order(head)
    return {name: x[order] if name.startswith("output.") else x for name, x in state.items()}
