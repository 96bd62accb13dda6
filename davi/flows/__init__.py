"""Bijections whose log-determinants are known, and the step from integers to continuous images."""

from davi.flows.actnorm import ActNorm
from davi.flows.autoregressive_shift import AutoregressiveShift, ShiftPairs
from davi.flows.base import Bijection, Inverse, Sequential
from davi.flows.conv1x1 import Conv1x1, LUConv1x1
from davi.flows.coupling import Additive, Coupling, Elementwise
from davi.flows.dequantization import Dequantization, Dequantized
from davi.flows.iaf import InverseAutoregressiveFlow, InverseAutoregressiveStep
from davi.flows.logit import Logit
from davi.flows.multiscale import MultiScale
from davi.flows.reshaping import Flatten, Squeeze

__all__ = [
    "ActNorm",
    "Additive",
    "AutoregressiveShift",
    "Bijection",
    "Conv1x1",
    "Coupling",
    "Dequantization",
    "Dequantized",
    "Elementwise",
    "Flatten",
    "Inverse",
    "InverseAutoregressiveFlow",
    "InverseAutoregressiveStep",
    "LUConv1x1",
    "Logit",
    "MultiScale",
    "Sequential",
    "ShiftPairs",
    "Squeeze",
]
