"""The Deep Attentive VAE of its authors: names, files and parity of their weights."""
