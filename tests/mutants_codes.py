"""Faults of ``tests/mutants.py`` in quantizers and in how their vectors are learned."""

from __future__ import annotations

from mutants_numbers import Mutant

CODES = (
    Mutant(
        "straight-through-on-the-wrong-side",
        "davi/layers/quantizing.py",
        "self.embedded.detach() + (self.features - self.features.detach())",
        "self.embedded + 0.0 * self.features",
        ("test_quantizer.py::test_straight_through_is_the_identity_to_gradients",),
    ),
    Mutant(
        "the-last-of-equally-near",
        "davi/layers/nearest.py",
        "torch.cat([torch.addmm(squares, part - center, centered.T, alpha=-2.0).argmin(1)",
        "torch.cat([len(squares) - 1 - torch.addmm(squares, part - center, centered.T, alpha=-2.0).flip(1).argmin(1)",
        ("test_quantizer.py::test_the_lowest_of_equally_near",),
    ),
    Mutant(
        "the-first-of-the-same-as-a-product-rounds",
        "davi/layers/nearest.py",
        "return _first_alike(centered)[found]",
        "return found",
        ("test_quantizer.py::test_the_first_of_vectors_that_are_the_same",),
    ),
    Mutant(
        "levels-beyond-the-outer-ones",
        "davi/layers/finite_scalar.py",
        "min((levels - 1) * EPSILON / 2, BEYOND)",
        "(levels - 1) * EPSILON / 2",
        ("test_quantizer.py::test_no_feature_is_beyond_the_outer_levels",),
    ),
    Mutant(
        "commitment-moves-vectors",
        "davi/layers/codebook.py",
        "(assigned.features - assigned.embedded.detach()).square()",
        "(assigned.features - assigned.embedded).square()",
        ("test_quantizer.py::test_commitment_moves_features_alone",),
    ),
    Mutant(
        "each-depth-replaces-the-whole",
        "davi/layers/residual_quantizer.py",
        "residual = residual - self._list(depth)[found[-1]]",
        "residual = residual - 0.0 * self._list(depth)[found[-1]]",
        ("test_quantizer.py::test_each_depth_replaces_what_is_left",),
    ),
    Mutant(
        "sums-without-their-counts",
        "davi/objectives/vector_averages.py",
        "self.counts.mul_(decay).add_(self.hits, alpha=1.0 - decay)",
        "self.counts.add_(self.hits, alpha=1.0 - decay)",
        ("test_vector_averages.py::test_two_codes_by_hand",),
    ),
    Mutant(
        "vectors-without-hits-drift",
        "davi/objectives/vector_averages.py",
        "return means if self.options.debias else",
        "return means if True else",
        ("test_vector_averages.py::test_vectors_without_hits_stay_to_the_last_digit",),
    ),
    Mutant(
        "revived-with-an-old-sum",
        "davi/objectives/vector_averages.py",
        "self.sums.copy_(torch.where(dead.unsqueeze(2), revived, self.sums))",
        "revived.clone()",
        ("test_vector_averages.py::test_the_dead_are_replaced_and_stay_until_they_are_hit",),
    ),
    Mutant(
        "vectors-follow-in-validation",
        "davi/objectives/vector_quantized.py",
        "evidence = model.evidence(batch.x, generator)",
        "evidence = self.loss(model, model, batch, Progress(0, 0, 0.0)) and model.evidence(batch.x, generator)",
        ("test_vector_quantized.py::test_validation_moves_nothing",),
    ),
    Mutant(
        "a-mean-over-channels-as-commitment",
        "davi/objectives/vector_quantized.py",
        "self.config.commitment * quantizer.commitment(assigned).mean()",
        "self.config.commitment * quantizer.commitment(assigned).mean() / quantizer.dims",
        ("test_vector_quantized.py::test_value_and_gradients",),
    ),
)
