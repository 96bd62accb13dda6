"""Our NVAE against the authors' own: fixtures agree, a wrong weight is named, and so are files that do not fit."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import davi
from davi.cli import main as program
from davi.errors import UserError
from davi.evidence import Evidence, Kind
from davi.layers import LikelihoodConfig
from davi.layers.nvae_cells import KernelConv2d
from davi.model import Step
from davi.models import NVAE
from davi.models.nvae import NVAEConfig
from davi.objectives import balancing
from davi.published.nvae.files import import_nvae
from davi.published.nvae.names import configuration, parameter_names
from davi.published.nvae.parity import NvaeParity
from davi.published.parity import main, read_fixture
from davi.published.reader import Given

FIXTURES = ("nvae_flow", "nvae_mnist")

Change = Callable[[dict[str, Tensor], dict[str, Any]], None]


@pytest.mark.parametrize("option", [[], ["--float64"]], ids=["float32", "float64"])
@pytest.mark.parametrize("name", FIXTURES)
def test_agrees_with_the_authors_code(
    need_shared: Callable[[str], Path], capsys: pytest.CaptureFixture[str], name: str, option: list[str]
) -> None:
    path = need_shared(f"fixtures/{name}.safetensors")
    assert main([str(path), *option]) == 0
    compared = {line[:40].strip() for line in capsys.readouterr().out.splitlines() if line.endswith(" ok")}
    tensors = load_file(path)
    groups = sum(key.startswith("z/") for key in tensors)
    expected = {f"layer {i}: {what}" for i in range(groups) for what in ("z", "kl")}
    expected |= {"output_mean"} & tensors.keys()
    assert compared == expected | {"recon_params", "uncond_params", "log_likelihood_nats"}


def shifted(name: str) -> Change:
    def apply(tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        tensors[f"state_dict/{name}"] = tensors[f"state_dict/{name}"] + 0.01

    return apply


def another_number(tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    facts["float32"]["recon_nll_nats"][1] += 0.1


@pytest.mark.parametrize(
    ("name", "change", "first"),
    [
        ("nvae_flow", shifted("stem.bias"), "layer 0: z"),
        ("nvae_flow", shifted("nf_cells.1.cell2.mu.conv_0.bias"), "layer 0: kl"),
        ("nvae_mnist", shifted("dec_sampler.1.1.bias"), "layer 2: z"),
        ("nvae_mnist", shifted("post_process.0._ops.0.conv.1.bn.running_mean"), "recon_params"),
        ("nvae_mnist", another_number, "log_likelihood_nats"),
    ],
)
def test_the_first_difference_is_named(
    spoilt: Callable[[str, Change], Path], capsys: pytest.CaptureFixture[str], name: str, change: Change, first: str
) -> None:
    assert main([str(spoilt(name, change))]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"DIFFERS: {first} is the first")


def without(key: str) -> Change:
    return lambda tensors, facts: tensors.__delitem__(key)  # type: ignore[return-value]  # both give None


def option(name: str, value: Any) -> Change:
    return lambda tensors, facts: facts["config"].__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("state_dict/stem.weight"), "1 missing (stem.weight)"),
        (option("num_cell_per_cond_dec", 3), "missing (dec_tower."),
        (option("arch_instance", "res_elu"), "arch_instance is 'res_elu', expected 'res_mbconv'"),
        (option("num_channels_enc", 6), "of another shape (stem.weight"),
        (option("num_postprocess_blocks", 1), "num_postprocess_blocks is 1, expected 2"),
        (option("num_mixture_dec", 1), "num_mixture_dec is 1, a density over real numbers"),
        (option("num_latent_scales", "many"), "invalid literal"),
        (lambda tensors, facts: facts["config"].pop("use_se"), "lacks 'use_se'"),
        (without("z/2"), "z of 2 layers, expected 3"),
    ],
)
def test_fixtures_that_cannot_be_used(
    spoilt: Callable[[str, Change], Path], capsys: pytest.CaptureFixture[str], change: Change, message: str
) -> None:
    assert main([str(spoilt("nvae_flow", change))]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def loaded(path: Path, dtype: torch.dtype = torch.float64) -> tuple[NvaeParity, dict[str, Any]]:
    tensors, facts = read_fixture(path)
    return NvaeParity(tensors, facts, dtype), facts


@torch.no_grad()
def at_the_means(parity: NvaeParity) -> list[Step]:
    """The walk with all noise zero."""
    steps: list[Step] = []

    def choose(layer: int, prior: Any, posterior: Any) -> Tensor:
        steps.append(Step(prior, posterior, posterior.center()))
        return steps[-1].z

    parity.model.top_down(choose, parity.model.encode(parity.x))
    return steps


@pytest.mark.parametrize("name", FIXTURES)
def test_penalties_are_the_authors(need_shared: Callable[[str], Path], name: str) -> None:
    parity, facts = loaded(need_shared(f"fixtures/{name}.safetensors"))
    theirs, model = facts["regularizers"], parity.model
    convolutions = [module for module in model.modules() if isinstance(module, KernelConv2d)]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert (len(convolutions), len(norms)) == (theirs["n_conv_layers"], theirs["n_bn_layers"])
    with torch.no_grad():
        exact = sum(float(torch.linalg.svdvals(conv.kernels().flatten(1))[0]) for conv in convolutions)
        model.initialize(torch.empty(0))
        ours = {kind: float(x) for kind, x in model.penalties().items()}
    # Theirs are sums of float32 numbers.
    assert exact == pytest.approx(theirs["spectral_sum_exact_svd"], rel=1e-6)
    assert ours["batch_norm_gain"] == pytest.approx(theirs["bn_sum_max_abs_gamma"], rel=1e-6)
    # Where 40 iterations have come depends on the random vectors they began with: below the exact sum, but not far.
    assert exact - 0.2 < ours["spectral_norm"] <= exact
    assert exact - 0.2 < theirs["spectral_sum_power_iteration_40"] <= exact


@pytest.mark.parametrize("name", FIXTURES)
def test_balancing_and_weights_are_the_authors(need_shared: Callable[[str], Path], name: str) -> None:
    parity, facts = loaded(need_shared(f"fixtures/{name}.safetensors"))
    steps = at_the_means(parity)
    maps = {f"kl/{i:02d}": step.kl_map() for i, step in enumerate(steps)}
    terms = {key: -kl.flatten(1).sum(1) for key, kl in maps.items()}
    gamma = balancing(Evidence(terms, Kind.LOWER_BOUND, kl_maps=maps))
    theirs = facts["kl_balancing"]
    # 1e-5: float32 on their side, and divergences that are differences of large numbers.
    assert [float(x) for x in gamma.values()] == pytest.approx(theirs["gamma_at_kl_coeff_0_5"], rel=1e-5)
    balanced = sum(0.5 * gamma[key] * -term for key, term in terms.items())
    assert isinstance(balanced, Tensor)
    assert balanced.tolist() == pytest.approx(theirs["balanced_kl_times_coeff_per_image"], rel=1e-5)
    log_q = sum(step.posterior.log_prob(step.z) for step in steps)
    log_p = sum(step.prior.log_prob(step.z) for step in steps)
    assert isinstance(log_q, Tensor)
    assert isinstance(log_p, Tensor)
    assert log_q.tolist() == pytest.approx(facts["float64"]["log_q"], rel=1e-9)
    assert log_p.tolist() == pytest.approx(facts["float64"]["log_p"], rel=1e-9)


def checkpoint(source: Path, path: Path, **changes: Any) -> Path:
    """A file as the authors' program writes it, with a fixture's weights; ``None`` removes an option."""
    tensors, facts = read_fixture(source)
    weights = {
        name.removeprefix("state_dict/"): x for name, x in tensors.items() if name.startswith("state_dict/")
    } | changes.pop("weights", {})
    options = {**facts["config"], **changes}
    arguments = argparse.Namespace(**{name: x for name, x in options.items() if x is not None})
    content = {
        "epoch": 3,
        "state_dict": {name: x for name, x in weights.items() if x is not None},
        "optimizer": {"state": {}, "param_groups": []},
        "global_step": 12,
        "args": arguments,
        "arch_instance": {"normal_enc": ["res_bnswish", "res_bnswish"]},
        "scheduler": {},
        "grad_scalar": {},
    }
    torch.save(content, path)
    return path


def test_a_checkpoint_becomes_a_run_with_the_authors_numbers(
    need_shared: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = need_shared("fixtures/nvae_flow.safetensors")
    tensors, facts = read_fixture(source)
    path, run = checkpoint(source, tmp_path / "checkpoint.pt"), tmp_path / "run"
    assert program(["import", "nvae", str(path), "--run", str(run), "--model.likelihood.form", "nvae"]) == 0
    assert "data set: cifar10" in capsys.readouterr().out
    model = davi.load(run)
    assert isinstance(model, NVAE)
    assert model.config == NVAEConfig((3,), 4, 4, 4, 2, 2, 2, 2, 2, shifts=2, pad=0,
                                      likelihood=LikelihoodConfig("logistic_mixture", 5, "nvae"))  # fmt: skip
    x = tensors["input_u8"].permute(0, 3, 1, 2)
    with torch.no_grad():
        steps: list[Step] = []

        def choose(layer: int, prior: Any, posterior: Any) -> Tensor:
            steps.append(Step(prior, posterior, posterior.center()))
            return steps[-1].z

        nats = model.top_down(choose, model.encode(x)).log_prob(x)
    # The tolerances of the parity program.
    torch.testing.assert_close(-nats, torch.tensor(facts["float32"]["recon_nll_nats"]), rtol=0, atol=0.05)
    kl = torch.stack([step.kl() for step in steps], 1)
    torch.testing.assert_close(kl, torch.tensor(facts["float32"]["kl_nats_per_layer_per_image"]), rtol=0, atol=1e-3)
    spectral = {name: x.clone() for name, x in model.state_dict().items() if name.startswith("spectral.left")}
    model.initialize(torch.empty(0))
    assert all(float((model.state_dict()[name] - x).abs().max()) < 0.3 for name, x in spectral.items())


def test_binary_checkpoints_are_for_images_without_their_margin(
    need_shared: Callable[[str], Path], tmp_path: Path
) -> None:
    source = need_shared("fixtures/nvae_mnist.safetensors")
    # Older files do not have these options; the newer ones' defaults are other values.
    aged = checkpoint(source, tmp_path / "old.pt", num_mixture_dec=None, min_groups_per_scale=None)
    found = import_nvae(aged, Given())
    assert (found.shape, found.levels, found.config.pad) == ((1, 28, 28), 2, 2)
    assert found.config.groups == (1, 3)
    assert found.data == {"set": "mnist", "binarization": "dynamic"}
    tensors, _ = read_fixture(source)
    shape = (1, 32, 32)
    whole = NVAE(shape, 2, configuration(read_fixture(source)[1]["config"])[1]).eval()
    ours = NVAE((1, 28, 28), 2, found.config).eval()
    whole.load_state_dict(found.state)
    ours.load_state_dict(found.state)
    x = tensors["input_u8"].permute(0, 3, 1, 2)[..., 2:-2, 2:-2].contiguous()
    z = ours.latents(x)
    assert all(torch.equal(a, b) for a, b in zip(z, whole.latents(nn.functional.pad(x, (2, 2, 2, 2))), strict=True))


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch owned",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"extra": _Evil()}}, "refused, since it holds more than tensors and would run code"),
        ({"arch_instance": "mbconv_sep"}, "arch_instance is 'mbconv_sep', expected 'res_mbconv'"),
        ({"weights": {"stem.weight": None}}, "stem.weight is missing"),
        ({"weights": {"stem.bias": None, "enc0.1.bias": None}}, "2 missing (stem.bias, enc0.1.bias)"),
        ({"weights": {"what": torch.zeros(2)}}, "1 unexpected (what)"),
        ({"weights": {"stem.bias": torch.zeros(3)}}, "1 of another shape (stem.bias [3], expected [4])"),
        ({"weights": {"stem.bias": torch.full((4,), torch.nan)}}, "stem.bias is not finite"),
        ({"num_groups_per_scale": 4}, "missing (enc_tower."),
        ({"num_latent_per_group": 10**9}, ""),
        ({"num_channels_enc": None}, "lacks 'num_channels_enc'"),
        ({"weights": {"prior_ftr0": torch.zeros(3)}}, "prior_ftr0 is missing or no map"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    need_shared: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    path = checkpoint(need_shared("fixtures/nvae_flow.safetensors"), tmp_path / "checkpoint.pt", **changes)
    assert program(["import", "nvae", str(path), "--run", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert str(path) in told
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert not Path("owned").exists()


def test_a_single_group_needs_no_towers(tmp_path: Path) -> None:
    """Its constant at the top has no influence, but tells the size of the images."""
    options = {**OPTIONS, "num_latent_scales": 1, "num_groups_per_scale": 1, "num_nf": 0}
    options |= {"num_channels_enc": 4, "num_channels_dec": 4}
    levels, config = configuration(options)
    model = NVAE((3, 8, 8), levels, config)
    weights = {name: model.state_dict()[key] for name, key in parameter_names(model).items()}
    assert "stem_decoder.weight" in weights
    content = {"args": argparse.Namespace(**options), "state_dict": weights}
    torch.save(content, tmp_path / "one.pt")
    with pytest.raises(UserError, match="a single group fit images of any size; give --recipe"):
        import_nvae(tmp_path / "one.pt", Given())
    assert import_nvae(tmp_path / "one.pt", Given(geometry=((3, 16, 16), 256))).shape == (3, 16, 16)
    weights["prior_ftr0"] = torch.rand(8, 4, 4)
    torch.save(content, tmp_path / "one.pt")
    assert import_nvae(tmp_path / "one.pt", Given()).shape == (3, 8, 8)


def test_options_that_contradict_the_file_are_refused(need_shared: Callable[[str], Path], tmp_path: Path) -> None:
    path = checkpoint(need_shared("fixtures/nvae_flow.safetensors"), tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match=r"model\.shifts: got 1, expected 2 as in the file$"):
        import_nvae(path, Given({"shifts": 1}))
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="holds list without the names of this model's weights"):
        import_nvae(path, Given())


OPTIONS = {
    "dataset": "celeba_64",
    "arch_instance": "res_mbconv",
    "num_nf": 1,
    "num_x_bits": 8,
    "num_latent_scales": 3,
    "num_groups_per_scale": 20,
    "num_latent_per_group": 20,
    "ada_groups": True,
    "min_groups_per_scale": 1,
    "num_channels_enc": 64,
    "num_preprocess_blocks": 1,
    "num_preprocess_cells": 2,
    "num_cell_per_cond_enc": 2,
    "num_channels_dec": 64,
    "num_postprocess_blocks": 1,
    "num_postprocess_cells": 2,
    "num_cell_per_cond_dec": 2,
    "num_mixture_dec": 10,
    "use_se": True,
    "res_dist": True,
}
"""The published command for CelebA 64."""


@pytest.mark.parametrize(
    ("changes", "shape", "keys"),
    [
        ({}, (3, 64, 64), 4596),
        (
            {"dataset": "mnist", "num_latent_scales": 2, "num_groups_per_scale": 10, "num_preprocess_blocks": 2}
            | {"num_postprocess_blocks": 2, "num_preprocess_cells": 3, "num_postprocess_cells": 3}
            | {"num_channels_enc": 32, "num_channels_dec": 32, "num_nf": 0},
            (1, 32, 32),
            2016,
        ),
        (
            {"num_latent_scales": 1, "num_groups_per_scale": 30, "num_channels_enc": 128, "num_channels_dec": 128},
            (3, 32, 32),
            3838,
        ),
        (
            {"num_latent_scales": 5, "num_groups_per_scale": 16, "min_groups_per_scale": 4, "num_nf": 2}
            | {"num_channels_enc": 30, "num_channels_dec": 30, "num_x_bits": 5},
            (3, 256, 256),
            5354,
        ),
    ],
    ids=["celeba64", "mnist", "cifar10", "celeba_hq256"],
)
def test_published_configurations_have_the_official_number_of_keys(
    changes: dict[str, Any], shape: tuple[int, int, int], keys: int
) -> None:
    """Convolutions without weight normalization are counted twice: the authors store an alias of each."""
    levels, config = configuration({**OPTIONS, **changes})
    with torch.device("meta"):
        model = NVAE(shape, levels, config)
    names = parameter_names(model)
    aliases = sum(isinstance(m, KernelConv2d) and m.log_g is None for m in model.modules())
    assert len(set(names)) + aliases == keys
    assert set(names.values()) == {key for key in model.state_dict() if not key.startswith("spectral.")}
    if config.groups == (5, 10, 20):
        tower = {int(name.split(".")[1]) for name in names if name.startswith("dec_tower.")}
        assert tower == set(range(34 * 2 + 35 + 2))


def test_groups_of_further_scales() -> None:
    def groups(**changes: Any) -> tuple[int, ...]:
        return configuration({**OPTIONS, **changes})[1].groups

    assert groups() == (5, 10, 20)
    assert groups(ada_groups=False) == (20, 20, 20)
    assert groups(num_latent_scales=5, num_groups_per_scale=16, min_groups_per_scale=4) == (4, 4, 4, 8, 16)
    assert groups(num_latent_scales=3, num_groups_per_scale=2) == (1, 1, 2)
