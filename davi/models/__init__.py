"""One paper, one file. A model is registered here by its name."""

from __future__ import annotations

from davi.model import Model
from davi.models.attentive_vae import AttentiveVAE

MODELS: dict[str, type[Model]] = {model.name: model for model in (AttentiveVAE,)}
"""Every model by the name that recipes use."""

__all__ = ["MODELS", "AttentiveVAE"]
