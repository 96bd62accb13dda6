"""Bijections whose log-determinants are known, and the step from integers to continuous images."""

from davi.flows.autoregressive_shift import AutoregressiveShift, ShiftPairs
from davi.flows.base import Bijection, Inverse, Sequential
from davi.flows.dequantization import Dequantization, Dequantized
from davi.flows.iaf import InverseAutoregressiveFlow, InverseAutoregressiveStep

__all__ = [
    "AutoregressiveShift",
    "Bijection",
    "Dequantization",
    "Dequantized",
    "Inverse",
    "InverseAutoregressiveFlow",
    "InverseAutoregressiveStep",
    "Sequential",
    "ShiftPairs",
]
