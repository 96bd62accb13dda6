"""DAVI: deep generative models of images that say how probable an image is."""

__version__ = "0.1.0"
