"""Faults of ``tests/mutants.py`` in what the kinds of models promise, and in what is kept beside their weights."""

from __future__ import annotations

from mutants_numbers import Mutant

KINDS = (
    Mutant(
        "log-determinant-left-out-of-a-flow",
        "davi/model/invertible.py",
        '"log_det": sum_per_image(log_det),',
        '"log_det": 0.0 * sum_per_image(log_det),',
        ("test_contract_invertible.py::test_evidence_is_a_bound_whose_mean_is_known",),
    ),
    Mutant(
        "noise-forgotten-in-the-weight-of-a-flow",
        "davi/model/invertible.py",
        'density if joint else density + terms["dequantization"]',
        "density",
        ("test_contract_invertible.py::test_mean_weights_are_the_probabilities",),
    ),
    Mutant(
        "completion-begins-one-pixel-late",
        "davi/model/autoregressive.py",
        "in range(given, height * width)",
        "in range(given + 1, height * width)",
        ("test_contract_autoregressive.py::test_completions_keep_what_is_given_and_follow_the_conditionals",),
    ),
    Mutant(
        "class-forgotten-in-draws",
        "davi/model/autoregressive.py",
        "self.conditionals(x, y).sample(",
        "self.conditionals(x, y if y is None else 0 * y).sample(",
        ("test_contract_autoregressive.py::test_draws_are_of_their_classes",),
    ),
    Mutant(
        "log-z-added",
        "davi/model/energy.py",
        '"negative_log_z": -log_z',
        '"negative_log_z": log_z',
        ("test_contract_energy.py::test_probabilities_sum_to_one",),
    ),
    Mutant(
        "estimated-partition-function-called-exact",
        "davi/model/energy.py",
        "self.partition.kind, dims",
        "Kind.EXACT, dims",
        ("test_contract_energy.py::test_a_claim_is_as_exact_as_its_partition_function",),
    ),
    Mutant(
        "chains-at-another-temperature",
        "davi/model/energy.py",
        "self.energy.chain_steps, generator, factor)",
        "self.energy.chain_steps, generator, 1.0)",
        ("test_contract_energy.py::test_samples_at_a_temperature_by_hand",),
    ),
    Mutant(
        "derived-values-of-other-weights",
        "davi/derived.py",
        '{"weights": weights, "options": dict(options)} else None',
        '{**info, "options": dict(options)} else None',
        ("test_partition.py::test_that_of_other_weights_is_never_used",),
    ),
    Mutant(
        "digest-of-the-model-around-an-energy",
        "davi/evaluation/bounds.py",
        "model.saved.state_dict()",
        "model.state_dict()",
        ("test_toys.py::test_two_seeds_are_compared",),
    ),
)
