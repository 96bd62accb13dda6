"""The Very Deep VAE of its authors: names, files and parity of their weights."""
