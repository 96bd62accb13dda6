"""Faults of ``tests/mutants.py`` in networks, training, data and import: small ones, such as haste would bring."""

from __future__ import annotations

from mutants_numbers import Mutant

_TRAINING = (
    Mutant(
        "average-counts-from-zero",
        "davi/training/optimizer.py",
        "min(self.decay, (1 + t) / (10 + t))",
        "min(self.decay, t / (10 + t))",
        ("test_training_step_filter.py::test_average_in_closed_form",),
    ),
    Mutant(
        "average-and-newest-exchanged",
        "davi/training/optimizer.py",
        "_foreach_lerp_(own, new, 1.0 - decay)",
        "_foreach_lerp_(own, new, decay)",
        ("test_training_step_filter.py::test_average_in_closed_form",),
    ),
    Mutant(
        "moments-of-adam-exchanged",
        "davi/training/optimizer.py",
        "return adam(groups, lr=rate, betas=betas,",
        "return adam(groups, lr=rate, betas=betas[::-1],",
        ("test_training_optimizer.py::test_the_fused_step_is_the_plain_one",),
    ),
    Mutant(
        "gates-decay",
        "davi/training/optimizer.py",
        'if id(p) in spared], "weight_decay": 0.0}',
        'if id(p) in spared], "weight_decay": config.weight_decay}',
        ("test_training_step_filter.py::test_one_step_by_hand",),
    ),
    Mutant(
        "warm-up-one-step-early",
        "davi/training/schedule.py",
        "return min(1.0, step / length) if length else 1.0",
        "return min(1.0, (step + 1) / length) if length else 1.0",
        ("test_training_schedule.py::test_warmup_then_cosine",),
    ),
    Mutant(
        "cosine-over-the-whole-budget",
        "davi/training/schedule.py",
        "min(1.0, (step - warm) / max(self.total_steps - warm, 1.0))",
        "min(1.0, step / self.total_steps)",
        ("test_training_schedule.py::test_warmup_then_cosine",),
    ),
    Mutant(
        "cosine-falls-twice-as-fast",
        "davi/training/schedule.py",
        "1.0 + math.cos(math.pi * rest)",
        "1.0 + math.cos(2.0 * math.pi * rest)",
        ("test_training_schedule.py::test_warmup_then_cosine",),
    ),
    Mutant(
        "stairs-of-equal-length",
        "davi/training/schedule.py",
        "[schedule.period_multiplier ** (i - last) for i in range(schedule.stairs)]",
        "[1.0 for i in range(schedule.stairs)]",
        ("test_vae.py::test_the_papers_schedule",),
    ),
    Mutant(
        "clipped-group-by-group",
        "davi/training/loop.py",
        'clip_grads_with_norm_(group["params"], verdict.limit, norm)',
        'torch.nn.utils.clip_grad_norm_(group["params"], verdict.limit)',
        ("test_training.py::test_one_update_is_the_optimizers",),
    ),
    Mutant(
        "forced-step-not-scaled-down",
        "davi/training/step_filter.py",
        'Verdict(True, "forced", min(limit, threshold), threshold)',
        'Verdict(True, "forced", limit, threshold)',
        ("test_training_step_filter.py",),
    ),
    Mutant(
        "quantile-of-the-unsorted",
        "davi/training/step_filter.py",
        "ordered = sorted(self.norms)",
        "ordered = list(self.norms)",
        ("test_training_step_filter.py::test_threshold_is_a_multiple_of_the_quantile",),
    ),
    Mutant(
        "parts-of-a-batch-weigh-the-same",
        "davi/training/loop.py",
        "weight = len(parts[part].x) / state.loader.sampler.batch_size",
        "weight = 1.0 / state.parts",
        ("test_training.py::test_parts_of_unequal_size_are_weighted",),
    ),
    Mutant(
        "batch-norm-adds-up-over-the-parts",
        "davi/training/parallel.py",
        "torch._foreach_add_(self.mean, self.real, alpha=weight)",
        "torch._foreach_add_(self.mean, self.real)",
        ("test_training_parallel.py::test_running_statistics_are_means_over_the_parts",),
    ),
    Mutant(
        "batch-norm-forgets-most-draws",
        "davi/recalibration.py",
        "norm.momentum = None  # every batch counts alike",
        "norm.momentum = 0.1  # every batch counts alike",
        ("test_recalibration.py::test_statistics_are_means_over_the_draws",),
    ),
    Mutant(
        "skipped-batch-stays-in-the-batch-norm",
        "davi/training/loop.py",
        "self.statistics.undo()",
        "pass",
        ("test_training.py::test_a_skipped_step_changes_nothing",),
    ),
)

_FLOWS = (
    Mutant(
        "mask-of-the-first-layer-sees-itself",
        "davi/layers/masked.py",
        'own > source if mask_type == "A" else own >= source',
        "own >= source",
        ("test_masked.py::test_the_jacobian_of_one_convolution_is_triangular",),
    ),
    Mutant(
        "mask-sees-a-pixel-less",
        "davi/layers/masked.py",
        "(torch.arange(rows * columns) < center)",
        "(torch.arange(rows * columns) < center - 1)",
        ("test_masked.py::test_taps_of_a_square_kernel",),
    ),
    Mutant(
        "flow-begins-with-the-wrong-mask",
        "davi/flows/iaf.py",
        "self.first = MaskedConv2d(variables, hidden, kernel_size, mask_type=first, reverse=reverse)",
        'self.first = MaskedConv2d(variables, hidden, kernel_size, mask_type="B", reverse=reverse)',
        ("test_bijections.py::test_log_determinants_are_those_of_the_jacobians",),
    ),
    Mutant(
        "shift-begins-with-the-wrong-mask",
        "davi/flows/autoregressive_shift.py",
        'first = causal_mask(variables, hidden, 3, mask_type="A", reverse=mirrored)',
        'first = causal_mask(variables, hidden, 3, mask_type="B", reverse=mirrored)',
        ("test_bijections.py::test_log_determinants_are_those_of_the_jacobians",),
    ),
    Mutant(
        "determinant-of-the-other-gate",
        "davi/flows/iaf.py",
        "(-gate).sigmoid() * shift, F.logsigmoid(gate)",
        "(-gate).sigmoid() * shift, F.logsigmoid(-gate)",
        ("test_bijections.py::test_log_determinants_are_those_of_the_jacobians",),
    ),
    Mutant(
        "determinants-of-other-shapes-are-means",
        "davi/distributions/base.py",
        "shares = total / math.prod(x.shape[1:])",
        "shares = total / x.numel()",
        ("test_bijections.py::test_shares_add_up",),
    ),
    Mutant(
        "parts-inverted-in-the-same-order",
        "davi/flows/base.py",
        "[part.inverse for part in self][::-1]",
        "[part.inverse for part in self]",
        ("test_bijections.py::test_the_inverse_undoes_it",),
    ),
    Mutant(
        "dequantization-over-one-level-fewer",
        "davi/flows/dequantization.py",
        "self.step = (high - low) / levels",
        "self.step = (high - low) / (levels - 1)",
        ("test_dequantization.py::test_constants_of_the_range",),
    ),
    Mutant(
        "dequantization-without-the-scaling",
        "davi/flows/dequantization.py",
        "log_q - step.log()",
        "log_q + step.log()",
        ("test_dequantization.py::test_constants_of_the_range",),
    ),
)

_LAYERS = (
    Mutant(
        "attention-over-columns",
        "davi/layers/depth_reading.py",
        "return scores.softmax(1)",
        "return scores.softmax(3)",
        ("test_depth_attention.py::test_weights_are_a_distribution_over_the_layers",),
    ),
    Mutant(
        "gradient-of-attention-uncentered",
        "davi/layers/depth_reading.py",
        "weights * (grad_weights - (weights * grad_weights).sum(1, keepdim=True))",
        "weights * grad_weights",
        ("test_depth_attention.py::test_outputs_and_gradients_are_those_of_stacking",),
    ),
    Mutant(
        "window-of-the-layers-farthest-away",
        "davi/layers/depth_approximation.py",
        "slice(0, self.window) if nearest_first else slice(layers - self.window, layers)",
        "slice(0, self.window)",
        ("test_depth_approximation.py::test_the_window_holds_the_nearest_layers",),
    ),
    Mutant(
        "gradient-of-pooled-keys-of-one-pixel",
        "davi/layers/depth_reading.py",
        '"bjhpwq,bdhpwq->bjdhw", in_each, in_cells(query, ctx.cell)',
        '"bjhw,bdhw->bjdhw", in_each[:, :, :, 0, :, 0], in_cells(query, ctx.cell)[:, :, :, 0, :, 0]',
        ("test_depth_approximation.py::test_gradients_are_those_of_finite_differences",),
    ),
    Mutant(
        "layer-reads-what-lies-above-it",
        "davi/models/attentive_vae.py",
        "context.features[layer], context.memory, layer + 1)",
        "context.features[layer], context.memory, 0)",
        ("test_attentive_vae.py::test_attention_weights_are_a_distribution_over_the_right_layers",),
    ),
    Mutant(
        "layer-reads-its-own-context",
        "davi/models/attentive_vae.py",
        "resize_to(last, grid)]",
        "resize_to(self.norm_last_value(context) if self.norm_last_value else context, grid)]",
        ("test_attentive_vae.py::test_what_a_layer_reads_by_hand",),
    ),
    Mutant(
        "weight-norm-of-each-kernel",
        "davi/layers/convolution.py",
        "torch.linalg.vector_norm(v, dim=(1, 2, 3), keepdim=True)",
        "torch.linalg.vector_norm(v, dim=(2, 3), keepdim=True)",
        ("test_layers.py::test_weight_norm_is_that_of_torch",),
    ),
    Mutant(
        "bias-not-scaled-by-the-data",
        "davi/layers/weight_norm_init.py",
        "conv.bias.sub_(shift).mul_(factor)",
        "conv.bias.sub_(shift)",
        ("test_weight_norm_init.py::test_the_initial_pass_and_every_later_one_agree",),
    ),
    Mutant(
        "power-iteration-of-the-left-alone",
        "davi/layers/spectral.py",
        "right = _unit(torch.bmm(left.unsqueeze(1), batch).squeeze(1))",
        "right = _unit(torch.bmm(own_left.unsqueeze(1), batch).squeeze(1))",
        ("test_nvae.py::test_spectral_norms_converge_to_the_largest_singular_values",),
    ),
    Mutant(
        "singular-vectors-forgotten",
        "davi/layers/spectral.py",
        "        own_left.copy_(left)\n",
        "",
        ("test_nvae.py::test_penalties_are_for_training_alone_and_their_vectors_are_kept",),
    ),
    Mutant(
        "negative-gains-are-free",
        "davi/models/nvae.py",
        "torch.stack(same).abs().amax(1).sum()",
        "torch.stack(same).amax(1).sum()",
        ("test_nvae.py::test_penalties_are_those_of_all_convolutions_and_batch_norms",),
    ),
    Mutant(
        "kernels-not-turned-in-the-gradient",
        "davi/layers/depthwise.py",
        "_convolve(gradient, kernels.flip(2, 3))",
        "_convolve(gradient, kernels)",
        ("test_depthwise.py::test_values_and_gradients_are_those_of_torch",),
    ),
    Mutant(
        "scores-over-the-root-of-the-width",
        "davi/layers/nonlocal_block.py",
        "_rows(values), scale=1.0)",
        "_rows(values))",
        ("test_layers.py::test_nonlocal_block_by_direct_sums",),
    ),
    Mutant(
        "padding-is-not-cut-off-evenly",
        "davi/layers/padding.py",
        "x[..., self.top : self.top + self.height, self.left : self.left + self.width]",
        "x[..., : self.height, : self.width]",
        ("test_layers_ends.py::test_padding_comes_off_again",),
    ),
)

_MODELS = (
    Mutant(
        "residual-posterior-without-the-prior",
        "davi/models/nvae.py",
        "_soft_clamped(prior + raw if self.config.residual_posterior else raw)",
        "_soft_clamped(raw)",
        ("test_nvae.py::test_a_residual_of_zero_is_the_prior",),
    ),
    Mutant(
        "top-prior-of-deviation-one",
        "davi/models/nvae.py",
        "return Normal(mean, log_scale.exp() + 0.01)",
        "return Normal(mean, log_scale.exp())",
        ("test_nvae.py::test_the_top_prior_is_a_little_wider_than_standard",),
    ),
    Mutant(
        "merge-weighs-by-deviations",
        "davi/models/ladder_vae.py",
        "torch.sigmoid(2.0 * (prior.scale.log() - measured.scale.log()))",
        "torch.sigmoid(prior.scale.log() - measured.scale.log())",
        ("test_ladder_vae.py::test_the_merge_is_the_normalized_product_of_the_densities",),
    ),
    Mutant(
        "log-variance-taken-for-log-deviation",
        "davi/models/biva.py",
        "(0.5 * log_variance.clamp(-_LOG_VARIANCE, _LOG_VARIANCE)).exp()",
        "log_variance.clamp(-_LOG_VARIANCE, _LOG_VARIANCE).exp()",
        ("test_biva.py::test_a_heads_second_output_is_the_log_variance",),
    ),
    Mutant(
        "posterior-of-the-way-up-alone",
        "davi/models/iaf_vae.py",
        "base, context = _normal(own.shifted(told.posterior)),",
        "base, context = _normal(told.posterior),",
        ("test_iaf_vae.py::test_both_ways_share_in_a_posterior",),
    ),
    Mutant(
        "early-draws-in-closed-form",
        "davi/distributions/posterior.py",
        "        return self.posterior.log_prob_map(x)\n",
        "        return self.posterior.log_prob_map(x)\n\n"
        "    def kl_map(self, prior: Latent, z: Tensor) -> tuple[Tensor, bool]:\n"
        "        return self.posterior.kl_map(prior, z)\n",
        ("test_biva.py::test_divergences_in_closed_form_for_early_draws_would_be_no_bound",),
    ),
    Mutant(
        "deviation-of-the-very-deep-vae-squared",
        "davi/models/very_deep_vae.py",
        "return Normal(mean, at_least_float32(log_scale).exp())",
        "return Normal(mean, (2.0 * at_least_float32(log_scale)).exp())",
        ("test_published_vdvae.py::test_agrees_with_the_oracle",),
    ),
    Mutant(
        "images-repeated-whole",
        "davi/repetition.py",
        "return what.repeat_interleave(times, 0)",
        "return what.repeat(times, *[1] * (what.ndim - 1))",
        ("test_repetition.py::test_tensors_and_what_consists_of_them",),
    ),
)

_DATA = (
    Mutant(
        "white-is-not-always-drawn",
        "davi/data/binarization.py",
        "torch.randint(levels - 1, pixels.shape",
        "torch.randint(levels, pixels.shape",
        ("test_data_images.py::test_draw_has_the_stated_probability_at_every_gray_value",),
    ),
    Mutant(
        "gray-of-one-half-is-white",
        "davi/data/binarization.py",
        "(pixels > (levels - 1) // 2)",
        "(pixels >= (levels - 1) // 2)",
        ("test_data_images.py::test_threshold_at_every_gray_value",),
    ),
    Mutant(
        "test-images-drawn-as-training-images",
        "davi/data/protocol.py",
        "binarized(source.test, binarization, stream(seed, 1))",
        "binarized(source.test, binarization, stream(seed, 0))",
        ("test_data.py::test_train_and_test_are_drawn_from_different_streams",),
    ),
    Mutant(
        "validation-images-are-trained-on",
        "davi/data/protocol.py",
        "return slice(None, total - n), last, rule",
        "return slice(None), last, rule",
        ("test_data.py::test_validation_fraction_or_count",),
    ),
    Mutant(
        "validation-patches-share-pixels-with-training",
        "davi/data/protocol.py",
        "apart = (~share_pixels(source.corners[: total - n], source.corners[last])).nonzero().flatten()",
        "apart = torch.arange(total - n)",
        ("test_data.py::test_photos_validation_shares_no_pixel_with_what_remains",),
    ),
    Mutant(
        "same-order-in-every-pass",
        "davi/data/augmentation.py",
        "generator=stream(self.seed, self._epoch))",
        "generator=stream(self.seed))",
        ("test_data_augmentation.py::test_passes_and_seeds_differ",),
    ),
    Mutant(
        "all-images-mirrored-alike",
        "davi/data/augmentation.py",
        "torch.randint(2, (x.shape[0], 1, 1, 1)",
        "torch.randint(2, (1, 1, 1, 1)",
        ("test_data_augmentation.py::test_flips",),
    ),
)

_PUBLISHED = (
    Mutant(
        "kernels-of-the-file-transposed",
        "davi/published/attentive/names.py",
        "tensor.permute(3, 2, 0, 1)  # [kh, kw, in, out]",
        "tensor.permute(3, 2, 1, 0)  # [kh, kw, in, out]",
        ("test_published_h5.py::test_round_trip",),
    ),
    Mutant(
        "means-and-scales-of-the-head-exchanged",
        "davi/published/vdvae/names.py",
        "return k + (channel * 3 + kind) * k + component",
        "return k + (kind * 3 + channel) * k + component",
        ("test_published_vdvae.py::test_agrees_with_the_oracle",),
    ),
    Mutant(
        "groups-from-the-finest",
        "davi/published/nvae/names.py",
        "return tuple(reversed(groups))",
        "return tuple(groups)",
        ("test_published_nvae.py::test_groups_of_further_scales",),
    ),
)

NETWORKS = (*_TRAINING, *_FLOWS, *_LAYERS, *_MODELS, *_DATA, *_PUBLISHED)
