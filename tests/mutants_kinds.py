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
        "NEGATIVE_LOG_Z: -log_z}",
        "NEGATIVE_LOG_Z: log_z}",
        ("test_contract_energy.py::test_probabilities_sum_to_one",),
    ),
    Mutant(
        "estimated-partition-function-called-exact",
        "davi/model/energy.py",
        "kind = Kind.weakest(partition.kind, self.claim)",
        "kind = self.claim",
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
    Mutant(
        "filters-turned-round-on-the-way-down",
        "davi/models/conv_rbm.py",
        "patches = self.weight.flatten(1).T",
        "patches = self.weight.flip(2, 3).flatten(1).T",
        ("test_conv_rbm.py::test_what_is_sent_down_is_the_adjoint",),
    ),
    Mutant(
        "places-in-blocks-for-nothing",
        "davi/layers/pooled_bits.py",
        "return -(pooled * self._sizes().to(pooled).log())",
        "return -(0.0 * pooled * self._sizes().to(pooled).log())",
        ("test_conv_dbn.py::test_the_bound_never_exceeds_what_is_summed",),
    ),
    Mutant(
        "units-that-smaller-blocks-do-not-have",
        "davi/layers/pooled_bits.py",
        "total = self._blocks(natural, -math.inf)",
        "total = self._blocks(natural, 0.0)",
        ("test_pooled_bits.py::test_units_are_the_exponential_family_of_their_states",),
    ),
    Mutant(
        "layers-above-have-no-say",
        "davi/models/conv_dbn.py",
        "if number + 1 < len(hidden):",
        "if number + 1 < 0:",
        ("test_conv_dbn.py::test_features_are_expectations_of_the_undirected_network",),
    ),
    Mutant(
        "half-of-the-sweeps-counted-as-all",
        "davi/models/conv_dbn.py",
        "first.expected_levels(total / (sweeps - sweeps // 2))",
        "first.expected_levels(total / sweeps)",
        ("test_conv_dbn.py::test_what_is_behind_a_mask_is_what_the_undirected_network_expects",),
    ),
)
