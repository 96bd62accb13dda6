"""The quantizers of Sonnet."""
