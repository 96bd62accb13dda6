"""NVAE of its authors: names, files and parity of their weights."""
