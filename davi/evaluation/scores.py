r"""Scores of how odd an image is to a model, and which of them to trust for what.

All are in bits per dimension, D = C H W. With a claim or bound :math:`\mathcal L(x)` on :math:`\log p(x)`:

*bits_per_dim*, the raw likelihood, :math:`-\mathcal L(x) / (D \ln 2)`. Too many bits are odd, and so are too few: a
model of photographs needs few for a white wall. Odd at both ends.

*llr_k*, the likelihood ratio LLR>k of a hierarchy with layers :math:`z_1` (top) to :math:`z_L` (finest). The bound with
the k finest layers from the prior, those above from the posterior, :math:`m = L - k`, is

.. math:: \mathcal L^{>k}(x) = E_{q(z_{\le m} \mid x)\, p(z_{> m} \mid z_{\le m})} \Bigl[\log p(x \mid z)
          + \sum_{l \le m} \log \frac{p(z_l \mid z_{<l})}{q(z_l \mid z_{<l}, x)} \Bigr] \le \log p(x),
          \qquad \mathrm{LLR}^{>k} = \frac{\mathcal L - \mathcal L^{>k}}{D \ln 2}

What an image loses if its finest latents are guessed from those above: much, if these do not know what it shows. Odd at
the high end. With K > 1 draws both bounds are importance weighted: the exponential of the bracket has the expectation
p(x) all the same. With one draw KL divergences are in closed form where there is one. Latents that are drawn on the way
up serve the posteriors that depend on them, also where the layer itself then comes from the prior. (The paper numbers
the layers from the image.)

*complexity*, the likelihood corrected for complexity: bits per dimension minus those of a file of the image alone, as
PNG or lossless WebP, whichever is smaller. An image that is hard for any method is not odd; one that is harder for this
model than for a general method is. Odd at the high end.

References:
    Hierarchical VAEs Know What They Don't Know, J. D. Havtorn, J. Frellsen, S. Hauberg, L. Maaløe, ICML 2021,
    https://arxiv.org/abs/2102.08248

    Input Complexity and Out-of-distribution Detection with Likelihood-based Generative Models, J. Serrà, D. Álvarez,
    V. Gómez, O. Slizovskaia, J. F. Núñez, J. Luque, ICLR 2020, https://arxiv.org/abs/1909.11480

    Do Deep Generative Models Know What They Don't Know?, E. Nalisnick, A. Matsukawa, Y. W. Teh, D. Gorur,
    B. Lakshminarayanan, ICLR 2019, https://arxiv.org/abs/1810.09136 (the raw likelihood fails)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import features
from torch import Generator, Tensor

from davi.batch import Batch
from davi.data import Images
from davi.errors import UserError
from davi.evaluation.baselines import Save, file_bits, fits_png, fits_webp, save_png, save_webp
from davi.evaluation.bounds import check_images, importance_bound, measuring
from davi.evaluation.record import Array
from davi.evaluation.streaming import LogMeanExp, double
from davi.model import Hierarchy, Model
from davi.model.walks import walk
from davi.repetition import repeat_images

Progress = Callable[[int, int], None]
"""``progress(done, total)``."""

RAW, COMPLEXITY, LLR = "bits_per_dim", "complexity", "llr_"
_MOST_RATIOS = 3


@dataclass(frozen=True)
class Score:
    """A number that says how odd an image is.

    Arguments:
        name: ``bits_per_dim``, ``llr_1``, ..., ``complexity``.
        rule: what it is, in words.
        two_sided: low values are odd as well as high ones.
    """

    name: str
    rule: str
    two_sided: bool = False

    @property
    def direction(self) -> str:
        """Which values are odd, in words."""
        return "high and low values are odd" if self.two_sided else "high values are odd"


def ratios(model: Model) -> tuple[int, ...]:
    """The k of LLR>k that are taken if nothing else is asked for: 1, all layers but the top one, and one between.

    Empty for models with fewer than two layers of latents.

    Example:
        >>> import davi
        >>> ratios(davi.build("attentive_digits_tiny"))  # of three layers
        (1, 2)
    """
    most = model.num_layers - 1 if isinstance(model, Hierarchy) else 0
    if most <= _MOST_RATIOS:
        return tuple(range(1, most + 1))
    return (1, (1 + most) // 2, most)


def scores_of(model: Model, images: Images, dropped: Sequence[int]) -> list[Score]:
    """The scores that a model and images like these have.

    Arguments:
        model: the model; only of a :class:`~davi.model.Hierarchy` there are likelihood ratios.
        images: whose shape and levels a format of files must hold.
        dropped: k of each likelihood ratio.

    Raises:
        UserError: if a k is not 1 .. L - 1, L the number of layers.
    """
    layers = model.num_layers if isinstance(model, Hierarchy) else 0
    dropped = list(dict.fromkeys(dropped))
    for k in dropped:
        if not 1 <= k < layers:
            expected = f"1 to {layers - 1}" if layers > 1 else "none: LLR>k needs a model with two layers of latents"
            raise UserError(f"llr: got k = {k}, expected {expected}")
    found = [Score(RAW, "bits per dimension of the image", two_sided=True)]
    found += [
        Score(f"{LLR}{k}", f"bits per dimension that {k} of {layers} layers, the finest, save over their prior")
        for k in dropped
    ]
    if formats := _formats(images):
        names = " or ".join(formats)
        found.append(Score(COMPLEXITY, f"bits per dimension minus those of the image's own file, {names}"))
    return found


def measure(
    model: Model,
    images: Images,
    dropped: Sequence[int] = (),
    samples: int = 1,
    batch_size: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Array]:
    """All scores of :func:`scores_of` for each image, without gradients, in eval mode, on the model's device.

    The raw one is the bound of :func:`davi.evaluation.evaluate` with the same K, seed and batch size.

    Arguments:
        model: the model.
        images: as they are evaluated.
        dropped: k of each likelihood ratio.
        samples: K, draws of the latents for each image and bound; a claim without any is asked for once.
        batch_size: images per pass.
        seed: of all draws.
        progress: told how many images are done.

    Returns:
        Name of the score -> ``[N]``, bits per dimension.

    Raises:
        UserError: if the images are not for the model, or it gives one of them no finite number.
    """
    check_images(model, images)
    dropped = list(dict.fromkeys(dropped))
    wanted = scores_of(model, images, dropped)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    # One each, all alike: the bounds of a ratio share the noise of the layers above, as far as it is drawn in order.
    generators = {k: Generator(device).manual_seed(seed) for k in (0, *dropped)}
    found: dict[int, list[Tensor]] = {k: [] for k in generators}
    draws = samples if draws_weights(model, images, device) else 1
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        x = images.pixels[part].to(device)
        y = None if images.labels is None or not model.classes else images.labels[part].to(device)
        found[0].append(_bound(model, Batch(x, y), draws, generators[0], batch_size))
        if isinstance(model, Hierarchy):
            for k in dropped:
                found[k].append(bound_above(model, x, k, samples, generators[k], batch_size, y))
        if progress is not None:
            progress(min(start + batch_size, len(images)), len(images))
    bits = {k: -torch.cat(parts).cpu().numpy() / (model.dims * math.log(2.0)) for k, parts in found.items()}
    values = {RAW: bits[0], **{f"{LLR}{k}": bits[k] - bits[0] for k in dropped}}
    if any(score.name == COMPLEXITY for score in wanted):
        values[COMPLEXITY] = bits[0] - compressed(images) / model.dims
    for name, each in values.items():
        if len(wrong := np.flatnonzero(~np.isfinite(each))):
            raise UserError(
                f"{images.name}: image {wrong[0]} has the {name} {each[wrong[0]]} ({len(wrong)} of {len(each)}), "
                "expected finite numbers; the model's weights are unusable"
            )
    return values


def bound_above(
    model: Hierarchy,
    x: Tensor,
    dropped: int,
    samples: int,
    generator: Generator | None,
    chunk: int,
    y: Tensor | None = None,
) -> Tensor:
    r"""One draw of :math:`\mathcal L^{>k}` for each image (module docstring), without gradients, in eval mode.

    Arguments:
        model: the model.
        x: integer images, ``[B, C, H, W]``, on the model's device.
        dropped: k, layers from the prior; 0 gives the bound itself.
        samples: K.
        generator: source of the draws; torch's default when None.
        chunk: images per pass; a small batch is repeated to fill it.
        y: classes, ``[B]``, of a model with classes.

    Returns:
        ``[B]``, float64, nats.
    """
    depth, b = model.num_layers - dropped, len(x)
    copies = max(n for n in range(1, max(1, chunk // b) + 1) if samples % n == 0)
    weights = LogMeanExp()
    with measuring(model):
        context = repeat_images(model.encode(x), copies)
        repeated = repeat_images(x, copies)  # [B * copies, C, H, W]
        labels = None if y is None else repeat_images(y, copies)
        for _ in range(samples // copies):
            steps, pixels = walk(model, context, b * copies, depth, lambda latent: latent.sample(generator), y=labels)
            total = double(pixels.log_prob(repeated))
            for step in steps[:depth]:
                exact = samples == 1
                nats = -step.kl() if exact else step.prior.log_prob(step.z) - step.posterior.log_prob(step.z)
                total = total + double(nats)
            weights.add(total.unflatten(0, (b, -1)).T)
    return weights.result().clone()


def draws_weights(model: Model, images: Images, device: torch.device) -> bool:
    """Whether the claims of a model about images have importance weights, so that more draws make a better bound."""
    if isinstance(model, Hierarchy):
        return True
    x, y = images.pixels[:1].to(device), None
    if images.labels is not None and model.classes:
        y = images.labels[:1].to(device)
    with measuring(model):
        return model.evidence(x, Generator(device).manual_seed(0), y).log_weight_fn is not None


def _bound(model: Model, batch: Batch, samples: int, generator: Generator, chunk: int) -> Tensor:
    """The bound with K draws, ``[B]``, float64, nats."""
    if samples > 1:
        return importance_bound(model, batch.x, samples, generator, chunk, batch.y)
    with measuring(model):
        terms = model.evidence(batch.x, generator, batch.y).terms
        return torch.stack([double(term) for term in terms.values()]).sum(0)


def compressed(images: Images, progress: Progress | None = None) -> Array:
    """Bits of each image's own file in the format that makes it smallest, ``[N]``.

    Raises:
        ValueError: if no format holds such images.
    """
    formats = _formats(images)
    if not formats:
        raise ValueError(f"{images.name}: got images that neither PNG nor WebP holds")
    return np.minimum.reduce([file_bits(images, save, progress) for save in formats.values()])


def _formats(images: Images) -> dict[str, Save]:
    """The formats that hold such images, by their names."""
    found: dict[str, Save] = {"PNG": save_png} if fits_png(images) else {}
    if fits_webp(images) and features.check("webp"):
        found["lossless WebP"] = save_webp
    return found
