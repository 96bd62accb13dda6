"""Faults of ``tests/mutants.py`` in what is claimed, measured and minimized: small ones, such as haste would bring."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """A fault.

    Arguments:
        name: of the fault, in words.
        file: relative to the root of the repository.
        old: text that is in the file exactly once.
        new: what stands there instead.
        tests: of which one must fail, in the folder of the tests.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


_CLAIM = (
    Mutant(
        "bits-per-dim-multiplied-by-ln-2",
        "davi/evidence.py",
        "-nats / (dims * math.log(2.0))",
        "-nats / dims * math.log(2.0)",
        ("test_evidence.py::test_a_fair_coin_costs_one_bit",),
    ),
    Mutant(
        "strongest-kind-of-the-parts",
        "davi/evidence.py",
        "return max(kinds)",
        "return min(kinds)",
        ("test_evidence.py::test_composite_has_the_weakest_kind",),
    ),
    Mutant(
        "kl-added-to-the-bound",
        "davi/model/hierarchy.py",
        "terms[name] = -sum_per_image(maps[name])",
        "terms[name] = sum_per_image(maps[name])",
        ("test_evaluation.py::test_terms_of_a_toy_by_hand",),
    ),
    Mutant(
        "built-models-are-in-training-mode",
        "davi/recipes/__init__.py",
        "return model.eval()",
        "return model",
        ("test_recipes.py::test_built_models_are_in_evaluation_mode",),
    ),
    Mutant(
        "log-q-added-to-the-weight",
        "davi/model/hierarchy.py",
        "total = total + step.prior.log_prob(step.z) - step.posterior.log_prob(step.z)",
        "total = total + step.prior.log_prob(step.z) + step.posterior.log_prob(step.z)",
        ("test_contract_hierarchy.py::test_log_weight_is_the_ratio_of_the_drawn_densities",),
    ),
    Mutant(
        "temperature-ignored-by-draws",
        "davi/distributions/normal.py",
        "return self.mean + temperature * self.scale * noise",
        "return self.mean + self.scale * noise",
        ("test_attentive_vae_geometry.py::test_temperature_scales_the_priors_deviations",),
    ),
)

_DISTRIBUTIONS = (
    Mutant(
        "kl-in-the-other-direction",
        "davi/distributions/normal.py",
        "return self.closed_kl_map(conditionals), conditionals is prior",
        "return conditionals.closed_kl_map(self), conditionals is prior",
        ("test_attentive_vae.py::test_terms_of_the_bound",),
    ),
    Mutant(
        "kl-shift-over-its-own-scale",
        "davi/distributions/normal.py",
        "shift = (self.mean - other.mean) / other.scale",
        "shift = (self.mean - other.mean) / self.scale",
        ("test_distributions.py::test_kl_is_the_integral",),
    ),
    Mutant(
        "kl-without-half-of-the-log",
        "davi/distributions/normal.py",
        "0.5 * (ratio.square() + shift.square() - 1.0) - ratio.log()",
        "0.5 * (ratio.square() + shift.square() - 1.0 - ratio.log())",
        ("test_distributions.py::test_kl_is_the_integral",),
    ),
    Mutant(
        "divergence-of-a-draw-reversed",
        "davi/distributions/base.py",
        "return self.log_prob_map(z) - prior.log_prob_map(z)",
        "return prior.log_prob_map(z) - self.log_prob_map(z)",
        ("test_posteriors.py::test_divergence_without_a_closed_form_is_that_of_the_draw",),
    ),
    Mutant(
        "determinant-of-a-flow-added",
        "davi/distributions/posterior.py",
        "self.base.log_prob_map(z0) - log_det",
        "self.base.log_prob_map(z0) + log_det",
        ("test_posteriors.py::test_affine_flow_of_a_normal_is_the_normal_it_should_be",),
    ),
    Mutant(
        "bounded-mean-too-steep",
        "davi/distributions/normal.py",
        "5.0 * torch.tanh(at_least_float32(raw_mean) / 10.0)",
        "5.0 * torch.tanh(at_least_float32(raw_mean) / 5.0)",
        ("test_distributions.py::test_bounded_normal_values",),
    ),
    Mutant(
        "smoothstep-of-the-wrong-cubic",
        "davi/distributions/normal.py",
        "t.square() * (3.0 - 2.0 * t)",
        "t.square() * (2.0 - t)",
        ("test_distributions.py::test_asymmetric_bound_is_a_smoothstep_with_zero_gradient_outside",),
    ),
    Mutant(
        "half-precision-likelihoods",
        "davi/distributions/base.py",
        "return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x",
        "return x.float() if x.dtype == torch.float16 else x",
        (
            "test_distributions.py::test_half_precision_outputs_are_measured_in_float32",
            "test_logistic_mixture.py::test_half_precision_is_measured_in_float32",
        ),
    ),
)

_LOGISTICS = (
    Mutant(
        "highest-level-is-no-open-end",
        "davi/distributions/logistic_mixture.py",
        "first, last = values == 0, values == self.levels - 1",
        "first, last = values == 0, values == self.levels",
        ("test_logistic_mixture.py::test_total_mass_is_one",),
    ),
    Mutant(
        "levels-instead-of-intervals",
        "davi/distributions/logistic_mixture.py",
        "return (self.levels - 1) / 2.0",
        "return self.levels / 2.0",
        ("test_logistic_mixture.py::test_values_are_those_of_the_formula",),
    ),
    Mutant(
        "blue-sees-itself",
        "davi/distributions/logistic_mixture.py",
        "self._rescaled(x[:, None, 1])  # [B, 1, H, W]",
        "self._rescaled(x[:, None, 2])  # [B, 1, H, W]",
        ("test_logistic_mixture.py::test_joint_mass_of_a_color_pixel_is_one",),
    ),
    Mutant(
        "coefficients-of-blue-exchanged",
        "davi/distributions/logistic_mixture.py",
        "c[:, :, 1] * red + c[:, :, 2] * green], 2)",
        "c[:, :, 2] * red + c[:, :, 1] * green], 2)",
        ("test_logistic_mixture.py::test_autoregressive_channels_and_mixing_by_hand",),
    ),
    Mutant(
        "one-component-for-each-channel",
        "davi/distributions/logistic_mixture.py",
        "per_channel = per_channel.sum(2, keepdim=True)",
        "per_channel = per_channel.mean(2, keepdim=True)",
        ("test_logistic_mixture.py::test_joint_mass_of_a_color_pixel_is_one",),
    ),
    Mutant(
        "derivative-by-the-scale",
        "davi/distributions/logistic_mixture.py",
        "share.mul_(inside).addcmul_(beyond, below, value=-1)",
        "share.mul_(inside).addcmul_(beyond, below, value=1)",
        ("test_logistic_mixture.py::test_derivatives_are_those_of_the_formula",),
    ),
    Mutant(
        "series-of-log1mexp",
        "davi/distributions/logistic_mixture.py",
        "series = log_t + t * (t / 24.0 - 0.5)",
        "series = log_t + t * (t / 24.0 + 0.5)",
        ("test_logistic_mixture.py::test_log1mexp",),
    ),
    Mutant(
        "green-drawn-given-unrounded-red",
        "davi/distributions/logistic_mixture.py",
        "self._rounded(means[:, 1] + c[:, 0] * self._rescaled(red))",
        "self._rounded(means[:, 1] + c[:, 0] * means[:, 0])",
        ("test_logistic_mixture.py::test_sampling_frequencies_of_colors",),
    ),
    Mutant(
        "mode-given-the-channel-itself",
        "davi/distributions/logistic_mixture.py",
        "self._exact(x.unsqueeze(1), means)[:, :, :i].sum(2)",
        "self._exact(x.unsqueeze(1), means)[:, :, : i + 1].sum(2)",
        ("test_logistic_mixture.py::test_the_mode_is_the_most_probable_value_given_those_before",),
    ),
)

_OBJECTIVES = (
    Mutant(
        "objective-without-log-k",
        "davi/objectives/bounds.py",
        "return (log_weights.logsumexp(1) - math.log(config.draws)).mean()",
        "return log_weights.logsumexp(1).mean()",
        ("test_objectives.py::test_bound_by_enumeration",),
    ),
    Mutant(
        "draws-of-other-images-in-the-bound",
        "davi/objectives/bounds.py",
        "log_weights = evidence.log_weight_fn().unflatten(0, (-1, config.draws))  # [B, k]",
        "log_weights = evidence.log_weight_fn().unflatten(0, (config.draws, -1)).T  # [B, k]",
        ("test_objectives.py::test_gradient_of_the_bound_is_the_weighted_sum_of_gradients",),
    ),
    Mutant(
        "doubly-reparameterized-without-squares",
        "davi/objectives/bounds.py",
        "((factor * (p - q) - p) * z).sum()",
        "(((p - q) - p) * z).sum()",
        ("test_objectives.py::test_two_draws_integrated_exactly",),
    ),
    Mutant(
        "doubly-reparameterized-through-later-draws",
        "davi/objectives/bounds.py",
        "found[i] = found[i] - through[0]",
        "found[i] = found[i] + through[0]",
        ("test_objectives.py::test_derivatives_of_draws_that_follow_from_others",),
    ),
    Mutant(
        "free-bits-for-each-image",
        "davi/objectives/bounds.py",
        "groups = per_channel.mean(0) if",
        "groups = per_channel.clamp_min(config.free_nats).mean(0) if",
        ("test_objectives.py::test_free_bits_by_hand",),
    ),
    Mutant(
        "gradient-through-the-balancing",
        "davi/objectives/bounds.py",
        "evidence.terms[name].detach().abs().mean()",
        "evidence.terms[name].abs().mean()",
        ("test_objectives.py::test_no_gradient_flows_through_the_weights_of_balancing",),
    ),
    Mutant(
        "balancing-by-sides-not-by-areas",
        "davi/objectives/bounds.py",
        "4.0 ** scales.index(size)",
        "2.0 ** scales.index(size)",
        ("test_nvae.py::test_balancing_by_hand",),
    ),
    Mutant(
        "warm-up-overshoots",
        "davi/objectives/bounds.py",
        "self.kl_start + (1.0 - self.kl_start) * progress",
        "self.kl_start + progress",
        ("test_objectives.py::test_annealing_by_epochs_is_the_papers",),
    ),
    Mutant(
        "penalty-goes-the-other-way",
        "davi/objectives/bounds.py",
        "self.penalty_start ** (1.0 - kl_weight) * self.penalty_weight**kl_weight",
        "self.penalty_start**kl_weight * self.penalty_weight ** (1.0 - kl_weight)",
        ("test_nvae.py::test_the_weight_of_the_penalties",),
    ),
)

_MEASURES = (
    Mutant(
        "log-k-of-one-draw-fewer",
        "davi/evaluation/streaming.py",
        "self._sum.log() - math.log(self._count)",
        "self._sum.log() - math.log(max(1, self._count - 1))",
        ("test_evaluation.py::test_log_mean_exp_in_any_chunks",),
    ),
    Mutant(
        "maximum-not-moved",
        "davi/evaluation/streaming.py",
        "self._sum = self._sum * (self._highest - reference).exp()",
        "self._sum = self._sum",
        ("test_evaluation.py::test_log_mean_exp_in_any_chunks",),
    ),
    Mutant(
        "covariance-without-the-parts-means",
        "davi/evaluation/activity.py",
        "self._products + products + shifts[0] * shifts[1] * (self._count * share)",
        "self._products + products",
        ("test_activity.py::test_running_covariance_in_any_parts",),
    ),
    Mutant(
        "biased-covariance-of-active-units",
        "davi/evaluation/activity.py",
        "return self._products / (self._count - 1)",
        "return self._products / self._count",
        ("test_activity.py::test_running_covariance_in_any_parts",),
    ),
    Mutant(
        "active-above-a-standard-deviation",
        "davi/evaluation/activity.py",
        "(variance > ACTIVE_VARIANCE).sum()",
        "(variance.clamp_min(0).sqrt() > ACTIVE_VARIANCE).sum()",
        ("test_evaluation.py::test_active_units",),
    ),
    Mutant(
        "noise-of-draws-counts-as-activity",
        "davi/evaluation/activity.py",
        "for start in (0, half):",
        "for start in (0, 0):",
        ("test_activity.py::test_noise_that_opposite_draws_do_not_cancel_has_no_expectation",),
    ),
    Mutant(
        "negative-terms-are-inactive-layers",
        "davi/evaluation/activity.py",
        "if value < least and name not in no_divergence]",
        "if value < least]",
        ("test_activity.py::test_a_layer_at_work_may_have_a_negative_term",),
    ),
    Mutant(
        "biased-standard-error",
        "davi/evaluation/clusters.py",
        "float(values.std(ddof=1) / np.sqrt(count))",
        "float(values.std() / np.sqrt(count))",
        ("test_report.py::test_numbers_by_hand",),
    ),
    Mutant(
        "patches-are-independent",
        "davi/evaluation/clusters.py",
        "sums = np.bincount(place, weights=values - values.mean())  # [G]",
        "sums = values - values.mean()  # [G]",
        ("test_clusters.py::test_by_hand",),
    ),
    Mutant(
        "as-many-clusters-as-degrees-of-freedom",
        "davi/evaluation/clusters.py",
        "np.sqrt(count / (count - 1) * np.square(sums).sum())",
        "np.sqrt(np.square(sums).sum())",
        ("test_clusters.py::test_by_hand",),
    ),
    Mutant(
        "interval-of-one-side",
        "davi/comparison/ranking.py",
        "stdtrit(clusters.witnesses(difference, groups) - 1, 0.975)",
        "stdtrit(clusters.witnesses(difference, groups) - 1, 0.95)",
        ("test_comparison.py::test_the_interval_agrees_with_scipy",),
    ),
    Mutant(
        "freedom-of-patches-not-of-files",
        "davi/comparison/ranking.py",
        "stdtrit(clusters.witnesses(difference, groups) - 1,",
        "stdtrit(len(difference) - 1,",
        ("test_comparison.py::test_patches_of_enough_files_have_as_many_degrees_of_freedom",),
    ),
    Mutant(
        "differences-of-other-images",
        "davi/comparison/ranking.py",
        "difference = values - reference\n",
        "difference = values - reference[::-1]\n",
        ("test_comparison.py::test_paired_differences_in_closed_form",),
    ),
    Mutant(
        "part-of-a-set-is-its-beginning",
        "davi/data/subsets.py",
        "edges = [(k * total + offset) // limit for k in range(limit + 1)]",
        "edges = list(range(limit + 1))",
        ("test_subsets.py::test_the_choice_is_that_of_every_version",),
    ),
    Mutant(
        "validation-drops-the-last-batch",
        "davi/training/validation.py",
        "range(rank, -(-len(images) // batch_size), count)",
        "range(rank, len(images) // batch_size, count)",
        ("test_training_validation.py::test_a_last_batch_that_is_not_full_counts_like_the_others",),
    ),
    Mutant(
        "baselines-of-all-images",
        "davi/cli/evaluate.py",
        "cached_baselines(opened.train, evenly(images, options.limit), location(None), progress)",
        "cached_baselines(opened.train, images, location(None), progress)",
        ("test_cli_numbers.py::test_model_and_baselines_are_asked_about_the_same_images",),
    ),
    Mutant(
        "histogram-not-smoothed-by-all-levels",
        "davi/evaluation/baselines.py",
        "np.log2(len(seen) + levels)",
        "np.log2(len(seen) + 1)",
        ("test_baselines.py::test_independent_pixels_by_hand",),
    ),
    Mutant(
        "expected-counts-over-levels",
        "davi/evaluation/baselines.py",
        "for rows in _chunks(n, d)) / (seen_levels - 1)",
        "for rows in _chunks(n, d)) / seen_levels",
        ("test_baselines.py::test_gray_training_images_count_by_their_expectation",),
    ),
    Mutant(
        "png-bits-for-each-pixel",
        "davi/evaluation/baselines.py",
        "return _baseline(name, bits / flat.shape[1], some, note)",
        "return _baseline(name, bits * test.shape[0] / flat.shape[1], some, note)",
        ("test_baselines.py::test_png_is_lossless_and_counted_in_full",),
    ),
)

NUMBERS = (*_CLAIM, *_DISTRIBUTIONS, *_LOGISTICS, *_OBJECTIVES, *_MEASURES)
