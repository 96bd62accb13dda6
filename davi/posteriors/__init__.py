"""Posteriors other than a Normal, for the layers of any hierarchy."""

from davi.posteriors.base import Posterior
from davi.posteriors.flow import FlowPosterior

__all__ = ["FlowPosterior", "Posterior"]
