"""NVAE once more, written down from its description alone, as an oracle: functions of a state dictionary with the
authors' names, batch norms with running statistics, latents at the means.

A weight that the dictionary lacks is made up when it is asked for, in the shape that is due; so an empty dictionary
becomes a complete random one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Options = Mapping[str, Any]


def groups_per_scale(options: Options) -> list[int]:
    """Groups of each scale, the finest first."""
    found = [options["num_groups_per_scale"]]
    while len(found) < options["num_latent_scales"]:
        fewer = max(found[-1] // 2, options["min_groups_per_scale"])
        found.append(fewer if options["ada_groups"] else found[0])
    return found


def soft_clamped(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation."""
    mean, log_scale = raw.chunk(2, 1)
    return 5 * torch.tanh(mean / 5), torch.exp(5 * torch.tanh(log_scale / 5)) + 0.01


def log_normal(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    nats = -0.5 * ((x - mean) / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)
    return nats.flatten(1).sum(1)


def looks_back(o: int, i: int, k: int, strict: bool, mirror: bool, depthwise: bool) -> Tensor:
    """Mask of an autoregressive convolution, weight by weight."""
    mask = torch.zeros(o, i, k, k)
    for a in range(o):
        for b in range(i):
            for row in range(k):
                for column in range(k):
                    before = row < k // 2 or (row == k // 2 and column < k // 2)
                    if row == column == k // 2:
                        if depthwise:
                            before = True
                        elif o >= i:
                            before = b < a // (o // i) if strict else b <= a // (o // i)
                        else:
                            before = b < (a + 1) * (i // o)
                    mask[a, b, row, column] = before
    return mask.flip(2, 3) if mirror else mask


class Official:
    """The model with the given weights, of one type of numbers."""

    def __init__(self, options: Options, weights: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> None:
        self.options, self.weights, self.dtype = options, weights, dtype
        self.generator = torch.Generator().manual_seed(0)
        self.used: set[str] = set()
        self.scales = groups_per_scale(options)
        self.shallow = options["num_latent_scales"] == 1 and options["num_groups_per_scale"] == 1

    def weight(self, name: str, *shape: int, around: float = 0.0, spread: float = 0.1) -> Tensor:
        self.used.add(name)
        if name not in self.weights:
            noise = torch.rand if name.endswith("running_var") else torch.randn
            self.weights[name] = around + spread * noise(shape, generator=self.generator)
        found = self.weights[name]
        assert tuple(found.shape) == shape, f"{name} has shape {tuple(found.shape)}, expected {shape}"
        return found.to(self.dtype)

    def conv(
        self, name: str, o: int, x: Tensor, k: int, stride: int = 1, bias: bool = True, mask: Tensor | None = None
    ) -> Tensor:
        """With weight normalization, which sees the masked weights."""
        depthwise = mask is not None and mask.shape[1] == 1
        i = 1 if depthwise else x.shape[1]
        w = self.weight(f"{name}.weight", o, i, k, k, spread=(i * k * k) ** -0.5)
        w = w if mask is None else w * mask
        length = w.square().sum((1, 2, 3), keepdim=True).sqrt()
        w = self.weight(f"{name}.log_weight_norm", o, 1, 1, 1).exp() * w / (length + 1e-5)
        b = self.weight(f"{name}.bias", o) if bias else None
        return F.conv2d(x, w, b, stride, k // 2, groups=x.shape[1] if depthwise else 1)

    def plain(self, name: str, o: int, x: Tensor, k: int, depthwise: bool = False) -> Tensor:
        i = 1 if depthwise else x.shape[1]
        w = self.weight(f"{name}.weight", o, i, k, k, spread=(i * k * k) ** -0.5)
        self.weights.setdefault(f"{name}.weight_normalized", self.weights[f"{name}.weight"])
        self.used.add(f"{name}.weight_normalized")
        return F.conv2d(x, w, padding=k // 2, groups=x.shape[1] if depthwise else 1)

    def norm(self, name: str, x: Tensor) -> Tensor:
        c = x.shape[1]
        self.weights.setdefault(f"{name}.num_batches_tracked", torch.tensor(7))
        self.used.add(f"{name}.num_batches_tracked")
        mean = self.weight(f"{name}.running_mean", c, spread=0.2)
        variance = self.weight(f"{name}.running_var", c, around=0.5, spread=1.0)
        gain, shift = self.weight(f"{name}.weight", c, around=1.0), self.weight(f"{name}.bias", c)
        mean, variance, gain, shift = (v.view(1, c, 1, 1) for v in (mean, variance, gain, shift))
        return (x - mean) / (variance + 1e-5).sqrt() * gain + shift

    def norm_swish(self, name: str, x: Tensor) -> Tensor:
        y = self.norm(name, x)
        return y * y.sigmoid()

    def gated(self, name: str, x: Tensor) -> Tensor:
        """Squeeze and excitation."""
        if not self.options["use_se"]:
            return x
        c = x.shape[1]
        h = max(c // 16, 4)
        a = self.weight(f"{name}.se.se.0.weight", h, c), self.weight(f"{name}.se.se.0.bias", h)
        b = self.weight(f"{name}.se.se.2.weight", c, h), self.weight(f"{name}.se.se.2.bias", c)
        gate = torch.relu(x.mean((2, 3)) @ a[0].T + a[1]) @ b[0].T + b[1]
        return x * gate.sigmoid()[:, :, None, None]

    def up_cell(self, name: str, x: Tensor, down: bool = False) -> Tensor:
        """A cell of the encoder."""
        c, o = x.shape[1], x.shape[1] * (2 if down else 1)
        skip = x
        if down:
            s, last = x * x.sigmoid(), o - 3 * (o // 4)
            parts = [s, s[:, :, 1:, 1:], s[:, :, :, 1:], s[:, :, 1:, :]]
            widths = [o // 4, o // 4, o // 4, last]
            skips = [
                self.conv(f"{name}.skip.conv_{j + 1}", widths[j], part, 1, stride=2) for j, part in enumerate(parts)
            ]
            skip = torch.cat(skips, 1)
        assert c == x.shape[1]
        y = self.norm_swish(f"{name}._ops.0.bn_act", x)
        y = self.conv(f"{name}._ops.0.conv_0", o, y, 3, stride=2 if down else 1)
        y = self.norm_swish(f"{name}._ops.1.bn_act", y)
        y = self.conv(f"{name}._ops.1.conv_0", o, y, 3)
        return skip + 0.1 * self.gated(name, y)

    def down_cell(self, name: str, x: Tensor, expansion: int, up: bool = False) -> Tensor:
        """A cell of the decoder."""
        c, u = x.shape[1], int(up)
        o = c // 2 if up else c
        skip, y = x, x
        if up:
            wide = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
            skip = self.conv(f"{name}.skip.1", o, wide, 1, bias=False)
            y = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        ops = f"{name}._ops.0.conv"
        y = self.norm(f"{ops}.{u}.bn", y)
        y = self.norm_swish(f"{ops}.{1 + u}.conv.1", self.plain(f"{ops}.{1 + u}.conv.0", expansion * c, y, 1))
        y = self.norm_swish(f"{ops}.{2 + u}.conv.1", self.plain(f"{ops}.{2 + u}.conv.0", expansion * c, y, 5, True))
        y = self.norm(f"{ops}.{4 + u}.bn", self.plain(f"{ops}.{3 + u}", o, y, 1))
        return skip + 0.1 * self.gated(name, y)

    def encode(self, x: Tensor) -> tuple[Tensor, list[tuple[str, Tensor]]]:
        """``x`` in [0, 1]: the last features, and what is stored for the way down, in the order of storing."""
        options = self.options
        s = self.conv("stem", options["num_channels_enc"], 2 * x - 1, 3)
        n = count()
        for _ in range(options["num_preprocess_blocks"]):
            for cell in range(options["num_preprocess_cells"]):
                s = self.up_cell(f"pre_process.{next(n)}", s, down=cell == options["num_preprocess_cells"] - 1)
        stored: list[tuple[str, Tensor]] = []
        n = count()
        if self.shallow:
            return s, stored
        for scale, groups in enumerate(self.scales):
            bottom = scale == len(self.scales) - 1
            for group in range(groups):
                for _ in range(options["num_cell_per_cond_enc"]):
                    s = self.up_cell(f"enc_tower.{next(n)}", s)
                if not (bottom and group == groups - 1):
                    stored.append((f"enc_tower.{next(n)}.conv", s))
            if not bottom:
                s = self.up_cell(f"enc_tower.{next(n)}", s, down=True)
        return s, stored

    def flow(self, group: int, z: Tensor) -> Tensor:
        c = z.shape[1]
        for pair in range(self.options["num_nf"]):
            for cell in (1, 2):
                name, mirror = f"nf_cells.{group * self.options['num_nf'] + pair}.cell{cell}", cell == 2
                first = looks_back(6 * c, c, 3, True, mirror, False)
                second = looks_back(6 * c, 1, 5, False, mirror, True)
                last = looks_back(c, 6 * c, 1, False, mirror, False)
                h = F.elu(self.conv(f"{name}.conv.convz.0", 6 * c, z, 3, bias=False, mask=first))
                h = F.elu(F.elu(self.conv(f"{name}.conv.convz.2", 6 * c, h, 5, bias=False, mask=second)))
                z = z - self.conv(f"{name}.mu.conv_0", c, h, 1, mask=last)
        return z

    def decode(self, batch: int, size: int, encoded: tuple[Tensor, list[tuple[str, Tensor]]] | None) -> dict[str, Any]:
        """Parameters of the likelihood; with the encoder's features z before the flows, and divergences, ``[B]``."""
        options, zc, cd = self.options, self.options["num_latent_per_group"], self.options["num_channels_dec"]
        coarsest = 2 ** (options["num_preprocess_blocks"] + len(self.scales) - 1)
        top = size // coarsest
        start = self.weight("prior_ftr0", cd * coarsest, top, top, around=0.5, spread=0.3)
        s = start.expand(batch, -1, -1, -1)
        ftr, stored = encoded or (s, [])
        multiple = coarsest
        latents, divergences, log_q, log_p = [], [], [], []
        group, n = 0, count()
        for groups in reversed(self.scales):
            for _ in range(groups):
                if group:
                    for _ in range(options["num_cell_per_cond_dec"]):
                        s = self.down_cell(f"dec_tower.{next(n)}", s, 6)
                    raw_p = self.conv(f"dec_sampler.{group - 1}.1", 2 * zc, F.elu(s), 1)
                else:
                    raw_p = torch.zeros(batch, 2 * zc, top, top, dtype=self.dtype)
                pm, ps = soft_clamped(raw_p)
                z = pm
                if encoded is not None:
                    if group:
                        name, kept = stored.pop()
                        h = kept + self.conv(name, options["num_channels_enc"] * multiple, s, 1)
                    else:
                        h = F.elu(self.conv("enc0.1", ftr.shape[1], F.elu(ftr), 1))
                    raw_q = self.conv(f"enc_sampler.{group}", 2 * zc, h, 3)
                    # The prior of the top group is N(0, 0), so that adding it changes nothing.
                    qm, qs = soft_clamped(raw_p + raw_q if options["res_dist"] else raw_q)
                    latents.append(qm)
                    z = self.flow(group, qm)
                    log_q.append(log_normal(qm, qm, qs))
                    log_p.append(log_normal(z, pm, ps))
                    kl = 0.5 * (((qm - pm) / ps).square() + (qs / ps).square()) - 0.5 - (qs / ps).log()
                    drawn = log_q[-1] - log_p[-1]
                    divergences.append(drawn if options["num_nf"] else kl.flatten(1).sum(1))
                if self.shallow:
                    s = self.conv("stem_decoder", options["num_channels_enc"] * multiple, z, 1)
                else:
                    s = self.conv(f"dec_tower.{next(n)}.conv", cd * multiple, torch.cat([s, z], 1), 1)
                group += 1
            if multiple > 2 ** options["num_preprocess_blocks"]:
                s = self.down_cell(f"dec_tower.{next(n)}", s, 6, up=True)
                multiple //= 2
        n = count()
        for _ in range(options["num_postprocess_blocks"]):
            for cell in range(options["num_postprocess_cells"]):
                s = self.down_cell(f"post_process.{next(n)}", s, 3, up=cell == 0)
        binary = options["dataset"] in ("mnist", "omniglot")
        params = self.conv("image_conditional.1", 1 if binary else 10 * options["num_mixture_dec"], F.elu(s), 3)
        return {"params": params, "z": latents, "kl": divergences, "log_q": log_q, "log_p": log_p}


def network_input(options: Options, images: Tensor) -> Tensor:
    """Bytes ``[B, C, H, W]`` -> [0, 1]; binary images are as they are."""
    if options["dataset"] in ("mnist", "omniglot"):
        return images.double()
    bits = options["num_x_bits"]
    return torch.floor(images.double() / 2 ** (8 - bits)) / (2**bits - 1)


def log_likelihood(options: Options, params: Tensor, x: Tensor) -> Tensor:
    """Nats per image of ``x`` ``[B, C, H, W]`` in [0, 1]."""
    x = x.to(params.dtype)
    if options["dataset"] in ("mnist", "omniglot"):
        nats = x * F.logsigmoid(params) + (1 - x) * F.logsigmoid(-params)
        return nats[:, :, 2:-2, 2:-2].flatten(1).sum(1)
    k, top = options["num_mixture_dec"], 2 ** options["num_x_bits"] - 1
    params, target = params.movedim(1, -1), (2 * x - 1).movedim(1, -1)
    logits, rest = params[..., :k], params[..., k:].unflatten(-1, (3, 3, k))  # [..., color, kind, K]
    total = logits.log_softmax(-1)
    for color in range(3):
        mean, log_scale, t = rest[..., color, 0, :], rest[..., color, 1, :].clamp_min(-7), target[..., color, None]
        if color == 1:
            mean = mean + rest[..., 0, 2, :].tanh() * target[..., 0, None]
        if color == 2:
            mean = mean + rest[..., 1, 2, :].tanh() * target[..., 0, None]
            mean = mean + rest[..., 2, 2, :].tanh() * target[..., 1, None]
        inverse = (-log_scale).exp()
        above, below, middle = ((t - mean + shift) * inverse for shift in (1 / top, -1 / top, 0))
        mass = above.sigmoid() - below.sigmoid()
        density = middle - log_scale - 2 * F.softplus(middle) - math.log(top / 2)
        inner = torch.where(mass > 1e-5, mass.clamp_min(1e-10).log(), density)
        total = total + torch.where(t < -0.999, F.logsigmoid(above), torch.where(t > 0.99, -F.softplus(below), inner))
    return total.logsumexp(-1).flatten(1).sum(1)
