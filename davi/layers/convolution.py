"""Weight-normalized convolutions, layer normalization over channels, squeeze-and-excitation."""

from __future__ import annotations

import math
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def with_length(v: Tensor, log_g: Tensor, margin: float = 0.0) -> Tensor:
    r"""Weight normalization: kernels with direction and length as separate parameters.

    .. math:: w_o = e^{g_o} \, v_o / (\|v_o\| + \epsilon)

    with the norm over all weights of output channel :math:`o`.

    References:
        Weight Normalization, T. Salimans, D. P. Kingma, NeurIPS 2016, https://arxiv.org/abs/1602.07868

    Arguments:
        v: ``[out, in, k, k]``.
        log_g: logarithms of the lengths, ``[out]``.
        margin: epsilon.

    Returns:
        The kernels, ``[out, in, k, k]``.
    """
    length = torch.linalg.vector_norm(v, dim=(1, 2, 3), keepdim=True)
    return v * (log_g.exp().view(-1, 1, 1, 1) / (length + margin if margin else length))


@final
class WeightNormConv2d(nn.Module):
    """A convolution with weight normalization (:func:`~davi.layers.convolution.with_length`) and 'same' padding.

    With stride 2 and an even input the padding is 0 before and 1 after (TensorFlow's convention), so that every kernel
    position lies in the image or just behind its end.

    Arguments:
        in_channels, out_channels: widths.
        kernel_size: odd.
        stride: 1 or 2.
        bias: whether to add a bias.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride
        self.v = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.log_g = nn.Parameter(torch.empty(out_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def extra_repr(self) -> str:
        out_channels, in_channels = self.v.shape[:2]
        return f"{in_channels}, {out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform with variance 1 / (3 fan-in), as the Deep Attentive VAE; the bias's own length is its fan-in."""
        if self.v.is_meta:
            return
        fan_in = self.v[0].numel()
        self.v.uniform_(-1.0 / math.sqrt(fan_in), 1.0 / math.sqrt(fan_in))
        self.log_g.copy_(self.v.flatten(1).norm(dim=1).log())
        if self.bias is not None:
            self.bias.uniform_(-1.0 / math.sqrt(self.bias.numel()), 1.0 / math.sqrt(self.bias.numel()))

    def kernels(self) -> Tensor:
        """The kernels in use, ``[out, in, k, k]``."""
        return with_length(self.v, self.log_g)

    def forward(self, x: Tensor) -> Tensor:
        padding = self.kernel_size // 2
        if self.stride == 2 and self.kernel_size > 1:
            x = F.pad(x, (padding - 1, padding, padding - 1, padding))
            padding = 0
        return F.conv2d(x, self.kernels(), self.bias, self.stride, padding)


@final
class ChannelLayerNorm(nn.Module):
    """Layer normalization over the channels of every pixel, with gain and offset, eps 1e-5; ``[B, C, H, W]``.

    References:
        Layer Normalization, J. L. Ba, J. R. Kiros, G. E. Hinton, 2016, https://arxiv.org/abs/1607.06450
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        pixels_last = x.permute(0, 2, 3, 1)  # [B, H, W, C]: no copy for channels_last tensors
        return F.layer_norm(pixels_last, self.gamma.shape, self.gamma, self.beta, 1e-5).permute(0, 3, 1, 2)


@final
class SqueezeExcite(nn.Module):
    """Scale every channel by a gate computed from the spatial means of all channels.

    References:
        Squeeze-and-Excitation Networks, J. Hu, L. Shen, G. Sun, CVPR 2018, https://arxiv.org/abs/1709.01507

    Arguments:
        channels: width.
        ratio: the bottleneck has ``max(channels // ratio, 4)`` units.
        bias: whether its two linear maps have offsets.
    """

    def __init__(self, channels: int, ratio: int = 16, bias: bool = False) -> None:
        super().__init__()
        hidden = max(channels // ratio, 4)
        self.squeeze = nn.Linear(channels, hidden, bias=bias)
        self.excite = nn.Linear(hidden, channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))  # [B, C]
        return x * gate[:, :, None, None]
