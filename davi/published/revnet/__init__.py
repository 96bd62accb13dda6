"""Published reversible residual networks."""
