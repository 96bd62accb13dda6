"""Our NVAE against an independent oracle, in configurations of which there are no numbers of the authors' own code."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from official_nvae import Official, log_likelihood, network_input
from safetensors.torch import load_file, save_file
from torch import Tensor

import davi
from davi.cli import main as program
from davi.models import NVAE
from davi.published.parity import main

OPTIONS: dict[str, Any] = {
    "dataset": "cifar10",
    "arch_instance": "res_mbconv",
    "num_nf": 0,
    "num_x_bits": 8,
    "num_latent_scales": 2,
    "num_groups_per_scale": 2,
    "num_latent_per_group": 3,
    "ada_groups": True,
    "min_groups_per_scale": 1,
    "num_channels_enc": 6,
    "num_preprocess_blocks": 1,
    "num_preprocess_cells": 2,
    "num_cell_per_cond_enc": 1,
    "num_channels_dec": 4,
    "num_postprocess_blocks": 1,
    "num_postprocess_cells": 1,
    "num_cell_per_cond_dec": 2,
    "num_mixture_dec": 3,
    "use_se": True,
    "res_dist": True,
}
"""Fewer groups at the coarser scale, and an encoder of another width than the decoder."""

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "adaptive": {},
    "three_scales": {"num_latent_scales": 3, "min_groups_per_scale": 2, "use_se": False, "num_cell_per_cond_enc": 2},
    "flow_5bit": {"num_latent_scales": 1, "res_dist": False, "num_nf": 2, "num_x_bits": 5, "num_postprocess_cells": 2},
    "binary_flow": {"dataset": "omniglot", "num_nf": 1, "num_preprocess_blocks": 2, "num_postprocess_blocks": 2},
    "one_group": {"num_latent_scales": 1, "num_groups_per_scale": 1, "num_channels_enc": 4, "num_nf": 1},
    "odd_widths": {"num_channels_enc": 5, "num_channels_dec": 6, "ada_groups": False, "num_latent_per_group": 1},
}


def write_fixture(path: Path, options: dict[str, Any], size: int = 16) -> Path:
    """A fixture in the form of the reference's, computed by the oracle, with ends of the range among the pixels."""
    binary = options["dataset"] == "omniglot"
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(2 if binary else 256, (2, 1 if binary else 3, size, size), generator=generator)
    if not binary:
        for row, value in enumerate((0, 255, 254, 1)):
            images[1, :, row] = value
    x = network_input(options, images)
    weights: dict[str, Tensor] = {}
    made = Official(options, weights, torch.float32)
    made.decode(2, size, made.encode(x.float()))
    facts: dict[str, Any] = {"model": "nvae", "config": options}
    for dtype in (torch.float64, torch.float32):
        official = Official(options, weights, dtype)
        found = official.decode(2, size, official.encode(x.to(dtype)))
        facts[str(dtype).removeprefix("torch.")] = {
            "recon_nll_nats": (-log_likelihood(options, found["params"], x)).tolist(),
            "kl_nats_per_layer_per_image": torch.stack(found["kl"], 1).tolist(),
        }
    tensors = {f"state_dict/{name}": value for name, value in weights.items()}
    tensors |= {f"z/{i}": z for i, z in enumerate(found["z"])}
    tensors["input_u8"] = images.permute(0, 2, 3, 1).to(torch.uint8)
    tensors["recon_params"] = found["params"]
    tensors["uncond_params"] = official.decode(1, size, None)["params"]
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, path)
    path.with_suffix(".json").write_text(json.dumps(facts))
    return path


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_agrees_with_the_oracle(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = write_fixture(tmp_path / f"{name}.safetensors", {**OPTIONS, **CONFIGURATIONS[name]})
    assert main([str(path)]) == 0, capsys.readouterr().out
    assert main([str(path), "--float64"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", ["nvae_flow", "nvae_mnist"])
def test_the_oracle_is_the_authors_model(need_shared: Callable[[str], Path], name: str) -> None:
    """So that what it says of configurations without a fixture can be believed."""
    path = need_shared(f"fixtures/{name}.safetensors")
    tensors, facts = load_file(path), json.loads(path.with_suffix(".json").read_text())
    weights = {key.removeprefix("state_dict/"): x for key, x in tensors.items() if key.startswith("state_dict/")}
    stored = set(weights)
    options, theirs = facts["config"], facts["float64"]
    official = Official(options, weights)
    x = network_input(options, tensors["input_u8"].permute(0, 3, 1, 2))
    found = official.decode(2, 32, official.encode(x))
    assert official.used == stored  # nothing is made up, nothing left over

    def agree(ours: Tensor, numbers: list[Any]) -> None:
        # float64 on both sides; sums of a thousand terms that may cancel
        torch.testing.assert_close(ours, torch.tensor(numbers, dtype=torch.float64), rtol=1e-11, atol=1e-11)

    agree(torch.stack(found["kl"], 1), theirs["kl_nats_per_layer_per_image"])
    agree(-log_likelihood(options, found["params"], x), theirs["recon_nll_nats"])
    agree(torch.stack(found["log_q"]).sum(0), theirs["log_q"])
    agree(torch.stack(found["log_p"]).sum(0), theirs["log_p"])
    for ours, key in ((found["params"], "recon_params"), (official.decode(1, 32, None)["params"], "uncond_params")):
        torch.testing.assert_close(ours.float(), tensors[key], rtol=0.0, atol=2e-7)  # theirs: float32 of about 0.5


def test_a_checkpoint_of_a_set_with_fewer_bits_has_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CIFAR-10 has 256 levels here; the weights are of use all the same, and are the oracle's."""
    options, weights = {**OPTIONS, "num_x_bits": 5}, dict[str, Tensor]()
    images = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(2))
    official, x = Official(options, weights), network_input(options, images)
    found = official.decode(2, 32, official.encode(x))
    path, run = tmp_path / "checkpoint.pt", tmp_path / "run"
    torch.save({"state_dict": weights, "args": argparse.Namespace(**options)}, path)
    words = ["import", "nvae", str(path), "--run", str(run)]
    assert program([*words, "--data.set", "cifar10"]) == 2
    assert "got cifar10 with images [3, 32, 32] of 256 levels" in capsys.readouterr().err
    assert program([*words, "--model.likelihood.form", "nvae"]) == 0
    assert "images of 3x32x32 with 32 levels; data set: unknown: give --data" in capsys.readouterr().out
    model = davi.load(run).double()
    assert isinstance(model, NVAE)
    levels = images // 8
    with torch.no_grad():
        nats = model.decode(model.latents(levels)).log_prob(levels)
    theirs = log_likelihood(options, found["params"], x)
    torch.testing.assert_close(nats, theirs, rtol=1e-9, atol=0.0)  # float64 on both sides
