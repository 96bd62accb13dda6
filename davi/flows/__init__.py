"""Bijections whose log-determinants are known, and the step from integers to continuous images."""

from davi.flows.actnorm import ActNorm
from davi.flows.autoregressive_shift import AutoregressiveShift, ShiftPairs
from davi.flows.base import Bijection, Inverse, Sequential
from davi.flows.batch_norm import FlowBatchNorm
from davi.flows.conv1x1 import Conv1x1, LUConv1x1
from davi.flows.coupling import Additive, Coupling, Elementwise
from davi.flows.dequantization import Dequantization, Dequantized
from davi.flows.halves import Flip, OnHalves, Pointwise, PositionNorm, coupling_steps
from davi.flows.iaf import InverseAutoregressiveFlow, InverseAutoregressiveStep
from davi.flows.logit import Logit
from davi.flows.mixture_logistic import MixtureLogistic, TanhAffine
from davi.flows.multiscale import MultiScale
from davi.flows.reshaping import Flatten, Reorder, Squeeze
from davi.flows.scale import Scale

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
    "Flip",
    "FlowBatchNorm",
    "Inverse",
    "InverseAutoregressiveFlow",
    "InverseAutoregressiveStep",
    "LUConv1x1",
    "Logit",
    "MixtureLogistic",
    "MultiScale",
    "OnHalves",
    "Pointwise",
    "PositionNorm",
    "Reorder",
    "Scale",
    "Sequential",
    "ShiftPairs",
    "Squeeze",
    "TanhAffine",
    "coupling_steps",
]
