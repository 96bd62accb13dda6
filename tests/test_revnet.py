"""Reversible residual networks: published sizes, gradients without kept activations, and what is kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from davi.layers.checkpointed import Checkpointed
from davi.model.meta import on_meta
from davi.models.revnet import RevNet, RevNetConfig
from davi.training.plan import saved_bytes


def size(config: RevNetConfig, classes: int, side: int = 32) -> int:
    with on_meta():
        return sum(parameter.numel() for parameter in RevNet((3, side, side), 256, config, classes).parameters())


@pytest.mark.parametrize(
    ("config", "ten", "hundred"),
    [
        (RevNetConfig(), 464_890, 475_060),
        (RevNetConfig(units=(9, 9, 9), widths=(32, 32, 64, 128)), 1_729_194, 1_740_804),
        (RevNetConfig(units=(9, 9, 9), widths=(32, 32, 64, 128), bottleneck=True), 1_748_778, 1_794_948),
    ],
    ids=["RevNet-38", "RevNet-110", "RevNet-164"],
)
def test_published_sizes(config: RevNetConfig, ten: int, hundred: int) -> None:
    assert (size(config, 10), size(config, 100)) == (ten, hundred)


@pytest.mark.parametrize(("third", "parameters"), [(3, 27_553_128), (11, 45_428_072)], ids=["RevNet-56", "RevNet-104"])
def test_published_sizes_for_imagenet(third: int, parameters: int) -> None:
    config = RevNetConfig(units=(2, 2, third, 2), widths=(128, 128, 256, 512, 832), bottleneck=True, stem="7x7")
    assert size(config, 1000, 224) == parameters


def network(units: int, recompute: bool, dtype: torch.dtype = torch.float64, bottleneck: bool = False) -> RevNet:
    torch.manual_seed(0)
    config = RevNetConfig(units=(units, units), widths=(4, 4, 8), recompute=recompute, bottleneck=bottleneck)
    model = RevNet((1, 8, 8), 5, config, 3).to(dtype).train()
    for parameter in model.parameters():  # away from gains of 1 and biases of 0
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return model


X = torch.randint(5, (6, 1, 8, 8), generator=torch.Generator().manual_seed(2))
Y = torch.randint(3, (6,), generator=torch.Generator().manual_seed(3))


def a_step(model: RevNet) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of all weights, and all buffers afterwards."""
    torch.nn.functional.cross_entropy(model(X), Y).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return gradients, dict(model.named_buffers())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_step_is_that_of_plain_autograd(dtype: torch.dtype, tolerance: float, bottleneck: bool) -> None:
    gradients, buffers = a_step(network(4, True, dtype, bottleneck))
    expected, statistics = a_step(network(4, False, dtype, bottleneck))
    assert (
        set(gradients) == set(expected) == {name for name, _ in network(4, True, dtype, bottleneck).named_parameters()}
    )
    for name, gradient in gradients.items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(gradient, expected[name], rtol=tolerance, atol=tolerance * scale, msg=name)
    torch.testing.assert_close(buffers, statistics, rtol=tolerance, atol=tolerance)
    counts = {int(count) for name, count in buffers.items() if name.endswith("num_batches_tracked")}
    assert counts == {1}


def bytes_kept(model: RevNet) -> int:
    """By a forward pass, for the backward pass."""
    return saved_bytes(lambda: model(X), model.parameters())


def test_memory_does_not_grow_with_the_units_of_a_stage() -> None:
    assert bytes_kept(network(4, True)) == bytes_kept(network(24, True))
    assert bytes_kept(network(4, False)) > 2 * bytes_kept(network(4, True))
    assert bytes_kept(network(16, False)) > 3 * bytes_kept(network(4, False))


def test_the_option_reaches_every_part() -> None:
    for recompute in (True, False):
        blocks = [block for block in network(2, recompute).blocks() if isinstance(block, Checkpointed)]
        assert [block.recompute for block in blocks] == [recompute] * 4
    assert len(list(network(1, True).blocks())) == 2  # first units alone


def test_depths_are_those_of_the_logits() -> None:
    model = network(3, True).eval()
    with torch.no_grad():
        depths = model.at_depths(X)
        torch.testing.assert_close(model.head(depths[-1]), model(X), rtol=1e-12, atol=1e-12)
    assert [tuple(h.shape[1:]) for h in depths] == [(4, 8, 8)] * 4 + [(8, 4, 4)] * 3


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 5, 3), (2, 9, 7)])
def test_images_of_odd_sizes(shape: tuple[int, int, int]) -> None:
    model = RevNet(shape, 4, RevNetConfig(units=(1, 2, 1), widths=(2, 2, 4, 6)), 3).eval()
    assert model(torch.randint(4, (2, *shape))).shape == (2, 3)


def test_odd_widths_have_no_halves() -> None:
    with pytest.raises(ValueError, match=r"^widths: got \[4, 4, 7\], expected even numbers: channels of two halves$"):
        RevNetConfig(units=(1, 1), widths=(4, 4, 7))


def test_images_are_standardized_by_the_training_images() -> None:
    model = network(1, True)
    model.initialize(X)
    torch.testing.assert_close(model.standardize(X).mean(), torch.zeros((), dtype=torch.float64), rtol=0.0, atol=1e-6)
