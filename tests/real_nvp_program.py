"""What the program of Real NVP computes, written down anew from its description, for fixtures of any size.

Everything has the layout that is the program's own: images, rows, columns, channels; masks of the whole image.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

Weights = dict[str, Tensor]
Pair = tuple[Tensor, Tensor]


def shapes(options: dict[str, Any], channels: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights and running statistics."""
    found: dict[str, tuple[int, ...]] = {}
    for scale in range(options["n_scale"]):
        last = scale == options["n_scale"] - 1
        width = options["base_dim"] * 2**scale
        for number in range(4 if last else 3):
            name = f"scale_{scale}/coupling_{number}"
            found[f"{name}/rescaling_scale"] = ()
            found |= _coupling(name, channels, 2 * channels + 1, width, options["residual_blocks"])
        for number in () if last else (4, 5, 6):
            name = f"scale_{scale}/coupling_{number}"
            found[f"{name}/scale"] = ()
            found |= _coupling(name, 2 * channels, 4 * channels, 2 * width, options["residual_blocks"])
        channels *= 2
    return found


def _coupling(name: str, channels: int, inputs: int, width: int, blocks: int) -> dict[str, tuple[int, ...]]:
    norms = {"bn_in": channels, "resnet/bn_pre_out": width}
    convolutions = {"h_in": (3, inputs, width), "skip_in": (1, width, width), "out": (1, width, 2 * channels)}
    for block in range(blocks):
        norms |= {f"resnet/block_{block}/bn_in": width, f"resnet/block_{block}/bn_0": width}
        convolutions[f"block_{block}/h_0"] = convolutions[f"block_{block}/out"] = (3, width, width)
        convolutions[f"skip_{block}"] = (1, width, width)
    found: dict[str, tuple[int, ...]] = {
        f"{norm}/{own}": (count,) for norm, count in norms.items() for own in ("beta", "mean", "var")
    }
    found |= {f"bn_out/{own}": (channels,) for own in ("mean", "var")}
    for layer, (size, fan_in, fan_out) in convolutions.items():
        found[f"resnet/{layer}/weights"] = (size, size, fan_in, fan_out)
        if not layer.endswith("h_0"):
            found[f"resnet/{layer}/biases"] = (fan_out,)
        if layer != "h_in" and not layer.endswith("h_0"):
            found[f"resnet/{layer}/magnitude"] = (fan_out,)
    return {f"{name}/{own}": shape for own, shape in found.items()}


class Program:
    """The flow behind the logit.

    Arguments:
        options: ``n_scale``, ``residual_blocks``, ``base_dim``.
        weights: by the program's names.
        train: with statistics of the batch.
    """

    def __init__(self, options: dict[str, Any], weights: Weights, train: bool) -> None:
        self.options, self.weights, self.train = options, weights, train
        self.moved: Weights = {}
        self.found: dict[str, Pair] = {}

    def moments(self, x: Tensor, name: str) -> Pair:
        """Over everything but the channels."""
        own = self.weights[f"{name}/mean"], self.weights[f"{name}/var"]
        if not self.train:
            return own
        mean = x.mean((0, 1, 2))
        variance = (x - mean).square().mean((0, 1, 2))
        for kind, old, new in zip(("mean", "var"), own, (mean, variance), strict=True):
            self.moved[f"{name}/{kind}"] = (0.9 * old + 0.1 * new).detach()
        return mean, variance

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, variance = self.moments(x, name)
        return (x - mean) / (variance + 1e-4).sqrt() + self.weights[f"{name}/beta"]

    def convolve(self, x: Tensor, name: str) -> Tensor:
        w = self.weights[f"{name}/weights"]
        w = w / w.square().sum((0, 1, 2)).sqrt()
        w = w * self.weights.get(f"{name}/magnitude", torch.ones(()))
        y = F.conv2d(x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1).contiguous(), padding=w.shape[0] // 2).permute(
            0, 2, 3, 1
        )
        return y + self.weights.get(f"{name}/biases", torch.zeros(()))

    def resnet(self, x: Tensor, name: str) -> Pair:
        h = self.convolve(x.relu(), f"{name}/h_in")
        total = self.convolve(h, f"{name}/skip_in")
        for block in range(self.options["residual_blocks"]):
            inner = self.norm(h, f"{name}/block_{block}/bn_in").relu()
            inner = self.norm(self.convolve(inner, f"{name}/block_{block}/h_0"), f"{name}/block_{block}/bn_0").relu()
            h = h + self.convolve(inner, f"{name}/block_{block}/out")
            total = total + self.convolve(h, f"{name}/skip_{block}")
        shift, raw = self.convolve(self.norm(total, f"{name}/bn_pre_out").relu(), f"{name}/out").chunk(2, 3)
        return shift, raw.tanh()

    def checkerboard(self, x: Tensor, name: str, kept: int) -> Pair:
        rows, columns = torch.arange(x.shape[1])[:, None], torch.arange(x.shape[2])
        mask = ((rows + columns + 1 + kept) % 2).to(x.dtype)[:, :, None]
        seen = 2 * self.norm(x * mask, f"{name}/bn_in")
        board = mask.expand(len(x), -1, -1, -1)
        shift, raw = self.resnet(torch.cat((seen, -seen, board), 3), f"{name}/resnet")
        log_scale = self.weights[f"{name}/rescaling_scale"] * raw * (1 - mask)
        y = (x + shift * (1 - mask)) * log_scale.exp()
        mean, variance = self.moments(y * (1 - mask), f"{name}/bn_out")
        log_variance = (variance + 1e-4).log()
        y = (y - mean * (1 - mask)) * (-0.5 * log_variance * (1 - mask)).exp()
        return self.keep(name, y, log_scale - 0.5 * log_variance * (1 - mask))

    def channels(self, x: Tensor, name: str, second: bool) -> Pair:
        parts = x.chunk(2, 3)
        seen, changed = parts if second else parts[::-1]
        normal = self.norm(seen, f"{name}/bn_in")
        shift, raw = self.resnet(torch.cat((normal, -normal), 3), f"{name}/resnet")
        log_scale = self.weights[f"{name}/scale"] * raw
        y = (changed + shift) * log_scale.exp()
        mean, variance = self.moments(y, f"{name}/bn_out")
        log_det = log_scale - 0.5 * (variance + 1e-4).log()
        y, zeros = (y - mean) / (variance + 1e-4).sqrt(), torch.zeros_like(log_det)
        pairs = ((seen, y), (zeros, log_det)) if second else ((y, seen), (log_det, zeros))
        return self.keep(name, torch.cat(pairs[0], 3), torch.cat(pairs[1], 3))

    def keep(self, name: str, y: Tensor, log_det: Tensor) -> Pair:
        self.found[name.replace("scale_", "scale")] = y, log_det
        return y, log_det

    def flow(self, x: Tensor, scale: int = 0) -> Pair:
        """z and the log-determinants of all couplings, at the same places."""
        total, last = torch.zeros_like(x), scale == self.options["n_scale"] - 1
        for number in range(4 if last else 3):
            x, log_det = self.checkerboard(x, f"scale_{scale}/coupling_{number}", number % 2)
            total = total + log_det
        if last:
            return x, total
        x, total = squeezed(x), squeezed(total)
        for number in (4, 5, 6):
            x, log_det = self.channels(x, f"scale_{scale}/coupling_{number}", number != 5)
            total = total + log_det
        x, total = unsqueezed(x), unsqueezed(total)
        z, rest = self.flow(diagonal(x), scale + 1)
        return in_place(x, z), in_place(total, diagonal(total) + rest)


def squeezed(x: Tensor) -> Tensor:
    return F.pixel_unshuffle(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


def unsqueezed(x: Tensor) -> Tensor:
    return F.pixel_shuffle(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


def diagonal(x: Tensor) -> Tensor:
    return torch.cat((x[:, ::2, ::2], x[:, 1::2, 1::2]), 3)


def in_place(x: Tensor, diagonals: Tensor) -> Tensor:
    x = x.clone()
    x[:, ::2, ::2], x[:, 1::2, 1::2] = diagonals.chunk(2, 3)
    return x


def write_fixture(path: Path, options: dict[str, Any], shape: tuple[int, int, int], batch: int) -> None:
    """A fixture in float64 of the program with random weights, with the facts beside it.

    Arguments:
        path: of the safetensors file.
        options: as of :class:`Program`.
        shape: (H, W, C).
        batch: images.
    """
    generator = torch.Generator().manual_seed(3)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    weights = {name: 0.4 * normal(*size) for name, size in shapes(options, shape[2]).items()}
    for name, x in weights.items():
        if name.endswith("/var"):
            x.add_(0.9).abs_().add_(0.2)
        elif not name.endswith(("/mean", "/beta", "/biases")):
            x.add_(0.5 if x.ndim < 4 else 0.0)
    weights = {name: x.float().double() for name, x in weights.items()}  # fixtures have them in single precision
    pixels = torch.randint(256, (batch, *shape), generator=generator)
    u = torch.rand(pixels.shape, generator=generator)
    y = 0.05 + 0.9 * (pixels + u.double()) / 256
    logit = y.logit()
    logit_log_det = (math.log(0.9) - y.log() - (1 - y).log()).sum((1, 2, 3))
    tensors: Weights = {f"weights/{name}": x for name, x in weights.items()}
    tensors |= {"input/x_uint8": pixels.to(torch.uint8), "input/u": u, "input/logit_x": logit}
    results: dict[str, Any] = {}
    for mode in ("eval", "train"):
        leaves = {name: x.clone().requires_grad_() for name, x in weights.items()}
        program = Program(options, leaves, mode == "train")
        z, log_diff = program.flow(logit)
        log_p = -0.5 * (z.square() + math.log(2 * math.pi)).sum((1, 2, 3))
        log_det = log_diff.sum((1, 2, 3))
        total = log_p + log_det + logit_log_det
        bits = math.log2(256) - total / z[0].numel() / math.log(2)
        terms = {"log_p_z": log_p, "log_det": log_det, "total": total, "bits_per_dim": bits}
        results[mode] = {name: term.tolist() for name, term in terms.items()}
        tensors |= {f"expected/{mode}/z": z, f"expected/float64/{mode}/z": z}
        tensors[f"expected/{mode}/log_diff_map"] = log_diff
        for name, (output, determinant) in program.found.items():
            tensors[f"expected/{mode}/{name}/output"] = output
            tensors[f"expected/{mode}/{name}/log_det_per_sample"] = determinant.sum((1, 2, 3))
        if mode == "train":
            trained = [name for name in leaves if not name.endswith(("/mean", "/var"))]
            gradients = torch.autograd.grad(-(log_p + log_det).mean(), [leaves[name] for name in trained])
            norms = {name: float(x.norm()) for name, x in zip(trained, gradients, strict=True)}
            tensors |= {f"expected/train/moving_after/{name}": x for name, x in program.moved.items()}
    tensors["expected/eval/decoded_z"] = logit
    save_file({name: x.detach().clone(memory_format=torch.contiguous_format) for name, x in tensors.items()}, path)
    config = {"batch": batch, "H": shape[0], "W": shape[1], "hparams": {**options, "use_batch_norm": 1}}
    found = {"float64": results, "float32": results, "train_grad_l2_float64": norms}
    path.with_suffix(".json").write_text(json.dumps({"model": "realnvp", "config": config, "results": found}))
