"""Bijections whose log-determinants are known, and the step from integers to continuous images.

What all have in common is in :mod:`davi.flows.base`.

Flows on pixels (:class:`davi.model.Invertible`):

- from integers to numbers and back: :mod:`davi.flows.dequantization`, its noise by name (:mod:`davi.flows.noise`),
  learned noise (:mod:`davi.flows.variational`), :mod:`davi.flows.logit`;
- couplings: :mod:`davi.flows.coupling`, the parts that they divide an image into (:mod:`davi.flows.splits`),
  :mod:`davi.flows.mixture_logistic`; other functions of one variable are in the files of the models that have them;
- between couplings: :mod:`davi.flows.scale`, :mod:`davi.flows.actnorm`, :mod:`davi.flows.batch_norm`,
  :mod:`davi.flows.conv1x1`, :mod:`davi.flows.reshaping`;
- several scales: :mod:`davi.flows.multiscale`;
- the steps of Flow++, of which learned noise is made as well: :mod:`davi.flows.halves`.

Flows of latents:

- of any posterior, with parameters that an encoder computes: :mod:`davi.flows.posterior` has them by name,
  :mod:`davi.flows.amortized` and :mod:`davi.flows.vectors` what they share; the flows are :mod:`davi.flows.planar`,
  :mod:`davi.flows.householder`, :mod:`davi.flows.sylvester` (with :mod:`davi.flows.orthogonal`) and
  :mod:`davi.flows.iaf`;
- of some hierarchies and priors: :mod:`davi.flows.iaf` again, :mod:`davi.flows.autoregressive_shift`.

Inverses that have no closed form: :mod:`davi.flows.solving`.
"""

from davi.flows.actnorm import ActNorm
from davi.flows.autoregressive_shift import AutoregressiveShift, ShiftPairs
from davi.flows.base import Bijection, Inverse, Sequential
from davi.flows.batch_norm import FlowBatchNorm
from davi.flows.conv1x1 import Conv1x1, LUConv1x1
from davi.flows.coupling import Additive, Coupling, Elementwise, TanhAffine
from davi.flows.dequantization import Dequantization, Dequantized
from davi.flows.halves import Flip, OnHalves, Pointwise, PositionNorm, coupling_steps
from davi.flows.iaf import InverseAutoregressiveFlow, InverseAutoregressiveStep
from davi.flows.logit import Logit
from davi.flows.mixture_logistic import MixtureLogistic
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
