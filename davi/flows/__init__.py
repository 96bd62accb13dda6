"""Bijections of latents whose log-determinants are known."""

from davi.flows.iaf import InverseAutoregressiveFlow, InverseAutoregressiveStep
from davi.flows.masked import MaskedConv2d

__all__ = ["InverseAutoregressiveFlow", "InverseAutoregressiveStep", "MaskedConv2d"]
