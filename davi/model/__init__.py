"""The kinds of networks, one file each. Code asks for a type, never for a name.

::

    Network                  what recipes build and runs save
    ├─ Classifier            log p(y | x) of classes; nothing about the image itself
    ├─ Model                 evidence(x) -> nats of log p(x) and their kind; sample(n)
    │  ├─ Autoregressive     every pixel given those before it; completion
    │  │  └─ CausalModel     by a causal network
    │  ├─ CodePrior          the codes of a quantized model, one layer after the other
    │  ├─ Invertible         a flow on dequantized images
    │  ├─ LatentModel        latents of an image and back
    │  │  └─ Hierarchy       several layers, one top-down pass
    │  │     ├─ LikelihoodHierarchy   its options choose the likelihood
    │  │     │  ├─ PixelHierarchy     and the prior and the posteriors
    │  │     │  └─ CodeAutoencoder    its latents are codes
    │  │     └─ Quantized        an autoencoder with a prior over its codes
    │  └─ Normalized         an energy with its partition function
    └─ Unnormalized          becomes a model with a partition function
       └─ Energy             free energies and Gibbs chains; no claim by itself
          └─ Harmonium       of visible and hidden units

:class:`Claiming` is what models and classifiers have in common: evidence. Beside these stand small capabilities:
:class:`Conditional` (classes), :class:`Classifying` (log p(y | x)), :class:`DataInitialized`, :class:`Staged` (parts
that are trained one after the other), :class:`Summable` (an energy whose partition function can be summed),
:class:`WithPartition` (a model whose likelihood needs one), :class:`WithChain` (a Markov chain that can be followed),
:class:`WithCouplings` (a harmonium whose couplings are one matrix), :class:`WithDepths` (a representation after each
block), :class:`Inverting` (each of them gives the image back), :class:`WithFilters` (hidden units that can be shown as
what they look for).
"""

from davi.model.autoregressive import Autoregressive
from davi.model.base import DataInitialized, Model, Temperature
from davi.model.causal import CausalModel
from davi.model.chain import WithChain
from davi.model.claiming import Claiming
from davi.model.classifier import Classifier
from davi.model.classifying import Classifying
from davi.model.code_prior import CodeGrid, CodePrior, CodePriorConfig
from davi.model.couplings import Couplings, WithCouplings
from davi.model.depths import WithDepths
from davi.model.energy import Energy, Normalized, Partition, Summable, Unnormalized, WithPartition, known
from davi.model.filters import WithFilters
from davi.model.harmonium import Clamped, Harmonium
from davi.model.hierarchy import Choose, Hierarchy, Step, ask_early
from davi.model.invertible import Invertible
from davi.model.inverting import Inverting
from davi.model.latent import LatentModel
from davi.model.latent_options import LatentOptions, LayerSizes
from davi.model.network import Conditional, Network
from davi.model.pixel_hierarchy import PixelHierarchy
from davi.model.pixel_likelihood import LikelihoodHierarchy
from davi.model.quantized import CodeAutoencoder, CodeContext, Quantized, QuantizedEvidence
from davi.model.staged import Staged

__all__ = [
    "Autoregressive",
    "CausalModel",
    "Choose",
    "Claiming",
    "Clamped",
    "Classifier",
    "Classifying",
    "CodeAutoencoder",
    "CodeContext",
    "CodeGrid",
    "CodePrior",
    "CodePriorConfig",
    "Conditional",
    "Couplings",
    "DataInitialized",
    "Energy",
    "Harmonium",
    "Hierarchy",
    "Invertible",
    "Inverting",
    "LatentModel",
    "LatentOptions",
    "LayerSizes",
    "LikelihoodHierarchy",
    "Model",
    "Network",
    "Normalized",
    "Partition",
    "PixelHierarchy",
    "Quantized",
    "QuantizedEvidence",
    "Staged",
    "Step",
    "Summable",
    "Temperature",
    "Unnormalized",
    "WithChain",
    "WithCouplings",
    "WithDepths",
    "WithFilters",
    "WithPartition",
    "ask_early",
    "known",
]
