"""The Very Deep VAE once more, written down from its description alone, as an oracle: plain loops over the entries of
the texts, functions of a state dictionary with the authors' names, latents at the means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Options = Mapping[str, Any]
Weights = Mapping[str, Tensor]


def entries(text: str) -> list[tuple[int, str, int]]:
    found = []
    for part in text.split(","):
        for letter in "xdm":
            if letter in part:
                a, b = part.split(letter)
                found += [(int(a), "x", 0)] * int(b) if letter == "x" else [(int(a), letter, int(b))]
                break
        else:
            found.append((int(part), "x", 0))
    return found


def width_at(options: Options, resolution: int) -> int:
    for pair in filter(None, options["custom_width_str"].split(",")):
        if pair.split(":")[0] == str(resolution):
            return int(pair.split(":")[1])
    return int(options["width"])


def shapes(options: Options) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight, from the table of the state dictionary."""
    z: int = options["zdim"]
    out: dict[str, tuple[int, ...]] = {}

    def conv(name: str, o: int, i: int, k: int) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = (o, i, k, k), (o,)

    def block(name: str, i: int, m: int, o: int, resolution: int) -> None:
        k = 3 if resolution > 2 else 1
        for number, (a, b, size) in enumerate(((i, m, 1), (m, m, k), (m, m, k), (m, o, 1)), 1):
            conv(f"{name}.c{number}", b, a, size)

    conv("encoder.in_conv", options["width"], options["image_channels"], 3)
    for n, (resolution, _, _) in enumerate(entries(options["enc_blocks"])):
        w = width_at(options, resolution)
        block(f"encoder.enc_blocks.{n}", w, int(w * options["bottleneck_multiple"]), w, resolution)
    decoder = entries(options["dec_blocks"])
    for n, (resolution, _, _) in enumerate(decoder):
        w, name = width_at(options, resolution), f"decoder.dec_blocks.{n}"
        m = int(w * options["bottleneck_multiple"])
        block(f"{name}.enc", 2 * w, m, 2 * z, resolution)
        block(f"{name}.prior", w, m, 2 * z + w, resolution)
        conv(f"{name}.z_proj", w, z, 1)
        block(f"{name}.resnet", w, m, w, resolution)
    for n, r in enumerate(biased(options)):
        out[f"decoder.bias_xs.{n}"] = (1, width_at(options, r), r, r)
    out["decoder.gain"] = out["decoder.bias"] = (1, options["width"], 1, 1)
    conv("decoder.out_net.out_conv", 10 * options["num_mixtures"], options["width"], 1)
    return out


def biased(options: Options) -> list[int]:
    return sorted({r for r, _, _ in entries(options["dec_blocks"]) if r <= options["no_bias_above"]})


def random_weights(options: Options, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.15 * torch.randn(shape, generator=generator) for name, shape in shapes(options).items()}


class Official:
    """The model with the given weights."""

    def __init__(self, options: Options, weights: Weights) -> None:
        self.options, self.weights = options, weights

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(x, weight, self.weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def block(self, name: str, x: Tensor) -> Tensor:
        for number in (1, 2, 3, 4):
            x = self.conv(f"{name}.c{number}", 0.5 * x * (1.0 + torch.erf(x / 2.0**0.5)))
        return x

    def encode(self, x: Tensor) -> dict[int, Tensor]:
        """``x``: normalized images."""
        h = self.conv("encoder.in_conv", x)
        activations = {h.shape[2]: h}
        for n, (_, kind, factor) in enumerate(entries(self.options["enc_blocks"])):
            h = h + self.block(f"encoder.enc_blocks.{n}", h)
            if kind == "d":
                rows = h.unflatten(2, (-1, factor)).unflatten(4, (-1, factor))
                h = rows.mean((3, 5))
            missing = width_at(self.options, h.shape[2]) - h.shape[1]
            h = torch.cat([h, h.new_zeros(len(h), missing, *h.shape[2:])], 1)
            activations[h.shape[2]] = h
        return activations

    def decode(self, batch: int, activations: dict[int, Tensor] | None) -> dict[str, Any]:
        """Parameters of the likelihood, and z and KL divergences (``[B]``) of the layers."""
        z_channels, xs = self.options["zdim"], {}
        for n, r in enumerate(biased(self.options)):
            xs[r] = self.weights[f"decoder.bias_xs.{n}"].repeat(batch, 1, 1, 1)
        latents, divergences = [], []
        for n, (r, kind, source) in enumerate(entries(self.options["dec_blocks"])):
            name = f"decoder.dec_blocks.{n}"
            x = xs.get(r, self.weights["decoder.gain"].new_zeros(batch, width_at(self.options, r), r, r))
            if kind == "m":
                coarse = xs[source][:, : x.shape[1]]
                x = x + coarse.repeat_interleave(r // source, 2).repeat_interleave(r // source, 3)
            prior = self.block(f"{name}.prior", x)
            pm, pv, change = prior.split([z_channels, z_channels, x.shape[1]], 1)
            z = pm
            if activations is not None:
                qm, qv = self.block(f"{name}.enc", torch.cat([x, activations[r]], 1)).chunk(2, 1)
                z = qm
                kl = -0.5 + pv - qv + 0.5 * ((2 * qv).exp() + (qm - pm).square()) / (2 * pv).exp()
                divergences.append(kl.flatten(1).sum(1))
            latents.append(z)
            x = x + change + self.conv(f"{name}.z_proj", z)
            xs[r] = x + self.block(f"{name}.resnet", x)
        x = xs[self.options["image_size"]] * self.weights["decoder.gain"] + self.weights["decoder.bias"]
        return {"params": self.conv("decoder.out_net.out_conv", x), "z": latents, "kl": divergences}


def log_likelihood(params: Tensor, x: Tensor, k: int, five_bits: bool = False) -> Tensor:
    """Nats per image of bytes ``[B, 3, H, W]``; ``params`` ``[B, 10 K, H, W]`` in the authors' order."""
    params, x = params.movedim(1, -1), x.movedim(1, -1)
    values = (x // 8 * 8 if five_bits else x).to(params.dtype)
    target = (values - 127.5) / 127.5  # [B, H, W, 3]
    logits, rest = params[..., :k], params[..., k:].unflatten(-1, (3, 3, k))  # [..., color, kind, K]
    means, log_scales, c = rest[..., 0, :], rest[..., 1, :].clamp_min(-7.0), rest[..., 2, :].tanh()
    red, green = target[..., 0, None], target[..., 1, None]
    green_means = means[..., 1, :] + c[..., 0, :] * red
    blue_means = means[..., 2, :] + c[..., 1, :] * red + c[..., 2, :] * green
    means = torch.stack([means[..., 0, :], green_means, blue_means], -2)
    half, t = (1 / 31 if five_bits else 1 / 255), target[..., None]
    above, below = ((t - means + half) / log_scales.exp(), (t - means - half) / log_scales.exp())
    difference, middle = above.sigmoid() - below.sigmoid(), (t - means) / log_scales.exp()
    density = middle - log_scales - 2 * F.softplus(middle) + torch.tensor(2 * half).log()
    inner = torch.where(difference > 1e-5, difference.clamp_min(1e-12).log(), density)
    per_color = torch.where(t < -0.999, F.logsigmoid(above), torch.where(t > 0.999, -F.softplus(below), inner))
    return torch.logsumexp(per_color.sum(-2) + logits.log_softmax(-1), -1).flatten(1).sum(1)
