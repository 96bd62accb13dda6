"""Posterior flows on static binarized MNIST: the Sylvester paper's comparison in small, at equally many steps.

python benchmarks/posteriors.py --runs FOLDER

The same VAE with each posterior. The bounds are on 1,000 test images spread over the set, the negative log-likelihood
with 1,000 importance samples; the gap is the difference of the two. A draw of Hamiltonian variational inference takes
several passes through the decoder: it has fewer steps, as many as 15 minutes hold, and 100 samples, and beside it
stands the VAE without a flow with as many samples. The published numbers are another training and another network
(twice the width, thousands of passes) and stand in a place of their own.
"""

from __future__ import annotations

import argparse

from arms import Arm, add_options, measured
from common import write

ARMS = {
    **{name: Arm(f"sylvester_mnist_{name}_small") for name in ("none", "planar", "iaf")},
    **{name: Arm(f"sylvester_mnist_{name}_small") for name in ("orthogonal", "householder", "triangular")},
    "hvi": Arm("hvi_mnist_small", importance_samples=100),
    "none_100_samples": Arm("sylvester_mnist_none_small", importance_samples=100),
}
PUBLISHED = {
    # minus ELBO, negative log-likelihood of the whole test set with 5,000 samples, as cited; 16 steps
    "none": (86.55, 82.14),
    "planar": (86.06, 81.91),
    "iaf": (84.20, 80.79),
    "orthogonal": (83.32, 80.22),
    "householder": (83.40, 80.29),
    "triangular": (83.40, 80.28),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, samples=1000)
    options = parser.parse_args()
    rows = measured(ARMS, options)
    for row in rows.values():
        row["gap"] = row["negative_elbo"]["mean"] - row["nll"]["mean"]
    conditions = {"importance_samples": options.importance_samples, "test_images": options.limit, "seed": options.seed}
    published = {name: {"negative_elbo": pair[0], "nll": pair[1]} for name, pair in PUBLISHED.items()}
    print(write("posteriors", {**conditions, "arms": rows, "published_as_cited": published}))


if __name__ == "__main__":
    main()
