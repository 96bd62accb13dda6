"""What every model with latents promises: its claim is a bound whose draws it can weigh, and latents say what it
remembers of an image."""

from __future__ import annotations

import pytest
import torch
from contract import names, seeded, shaken, some_images

from davi import Kind, LatentModel


@pytest.fixture(params=names(LatentModel))
def latent_model(request: pytest.FixtureRequest) -> LatentModel:
    found = shaken(request.param)
    assert isinstance(found, LatentModel)
    return found


def test_evidence_is_a_bound_from_draws(latent_model: LatentModel) -> None:
    x = some_images(latent_model, 4)
    first, other = (latent_model.evidence(x, seeded(seed)) for seed in (5, 6))
    assert first.kind is Kind.LOWER_BOUND
    assert bool((first.log_px != other.log_px).all()) != first.deterministic
    assert first.log_weight is not None
    assert first.log_weight.shape == (4,)


def test_latents_decode_to_the_reconstruction(latent_model: LatentModel) -> None:
    x = some_images(latent_model, 3)
    latents = latent_model.latents(x)
    assert all(len(z) == 3 and not z.requires_grad for z in latents)
    made = latent_model.reconstruct(x)
    latent_model.check_images(made)
    assert made.shape == x.shape
    assert torch.equal(made, latent_model.decode(latents).mode())
    drawn = [latent_model.latents(x, sample=True, generator=seeded(seed)) for seed in (5, 5, 6)]
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    certain = latent_model.evidence(x).deterministic
    assert all(torch.equal(a, b) == certain for a, b in zip(drawn[0], drawn[2], strict=True))
