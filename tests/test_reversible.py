"""Reversible rows give what plain autograd gives, keep no activations, and can be run backwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from davi.layers.reversible import AdditiveStep, Reversible, ReversibleStack
from davi.layers.space_to_depth import depth_to_space, space_to_depth
from davi.training.plan import saved_bytes


class Function(nn.Module):
    """With all that a second computation could change: draws, and running statistics."""

    def __init__(self, channels: int, dropout: float = 0.0, block: int = 1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.first = nn.Conv2d(channels, 3, 3, padding=1, stride=block)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Conv2d(3, channels * block**2, 1)

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        hidden = self.first(self.norm(x).relu())
        for extra in context:
            hidden = hidden + extra
        return self.last(self.dropout(hidden.tanh()))


def row(count: int, channels: int = 2, dropout: float = 0.0) -> Reversible:
    torch.manual_seed(0)
    return Reversible([AdditiveStep(Function(channels, dropout)) for _ in range(count)])


def pair(dtype: torch.dtype = torch.float64, channels: int = 2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(3, 2 * channels, 4, 4, dtype=dtype, requires_grad=True)
    return x, torch.randn(3, 3, 4, 4, dtype=dtype, requires_grad=True)


def trained(module: Reversible, *inputs: Tensor, passes: int = 1) -> list[Tensor]:
    """Gradients of inputs and weights, and every buffer, after one step."""
    x, *context = inputs
    torch.manual_seed(2)
    leaves = [*inputs, *module.parameters()]
    for leaf in leaves:
        leaf.grad = None
    for _ in range(passes):
        y1, y2 = module(*x.chunk(2, 1), *context)
        (y1.sin().sum() + (y1 * y2).square().sum()).backward()
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    return [*gradients, y1.detach(), y2.detach(), torch.rand(()), *module.buffers()]


def plain(module: Reversible) -> Reversible:
    kept = copy.deepcopy(module)
    kept.recompute = False
    return kept


def assert_equal_steps(module: Reversible, inputs: Sequence[Tensor], tolerance: float, passes: int = 1) -> None:
    kept = plain(module)
    for one, other in zip(trained(module, *inputs, passes=passes), trained(kept, *inputs, passes=passes), strict=True):
        scale = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("with_context", [False, True])
def test_gradients_and_statistics_are_those_of_plain_autograd(
    dtype: torch.dtype, tolerance: float, with_context: bool
) -> None:
    x, context = pair(dtype)
    assert_equal_steps(row(5).to(dtype), (x, context) if with_context else (x,), tolerance)


def test_dropouts_drop_the_same_values_and_leave_the_generator_as_one_pass_does() -> None:
    assert_equal_steps(row(3, dropout=0.5).double(), pair(), 1e-10)


def test_a_step_may_occur_twice_and_gradients_accumulate() -> None:
    module = row(2).double()
    shared = Reversible([*module, next(iter(module))])
    assert_equal_steps(shared, pair(), 1e-10, passes=2)


@pytest.mark.parametrize("block", [1, 2])
def test_frozen_weights_and_inputs_without_gradient_are_left_alone(block: int) -> None:
    module = Reversible([AdditiveStep(Function(2, block=block), block), AdditiveStep(Function(2 * block**2))]).double()
    for weight in list(module.parameters())[:4]:
        weight.requires_grad_(False)
    x = pair()[0].detach()
    assert_equal_steps(module, (x,), 1e-10)
    assert x.grad is None


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


def test_one_step_and_a_function_without_gradient() -> None:
    assert_equal_steps(Reversible([AdditiveStep(Constant())]), pair()[:1], 1e-12)


def test_without_gradients_nothing_is_kept_and_the_result_is_the_same() -> None:
    module, (x, _) = row(3).double().eval(), pair()
    with torch.no_grad():
        alone = module(*x.chunk(2, 1))
    tracked = module(*x.chunk(2, 1))
    assert not alone[0].requires_grad
    assert tracked[0].requires_grad
    for one, other in zip(alone, tracked, strict=True):
        assert torch.equal(one, other)


def test_under_autocast_the_halves_stay_in_float32() -> None:
    module, (x, _) = row(4).eval(), pair(torch.float32)
    kept = plain(module)
    found = []
    for one in (module, kept):
        with torch.autocast("cpu", torch.bfloat16):
            y = torch.cat(one(*x.to(torch.bfloat16).chunk(2, 1)), 1)
            # What comes after uses the same weight: none that was cast outside of the graph may be lying in the cache.
            y = y.sum() + one.get_submodule("steps.0.function.last")(x[:, :3]).sum()
        assert y.dtype == torch.float32
        found.append(torch.autograd.grad(y, [x, *one.parameters()]))
    for a, b in zip(*found, strict=True):
        # bfloat16 has 8 bits: a difference in the last bit of float32 can become one of these.
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2 * float(b.abs().max()))


def test_saved_bytes_do_not_depend_on_the_number_of_steps() -> None:
    inputs = pair()[0].chunk(2, 1)

    def bytes_of(module: Reversible) -> int:
        return saved_bytes(lambda: module(*inputs), module.parameters())

    few, many = row(4, dropout=0.5).double(), row(64, dropout=0.5).double()
    assert bytes_of(few) == bytes_of(many) == 2 * inputs[0].numel() * 8
    assert bytes_of(plain(many)) > 15 * bytes_of(plain(few))


@pytest.mark.parametrize("blocks", [(1,), (1, 1, 1), (2, 1, 1), (1, 2, 1, 2, 1)])
def test_the_inverse_undoes_the_forward_pass(blocks: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    steps, channels = [], 2
    for block in blocks:
        steps.append(AdditiveStep(Function(channels, block=block), block))
        channels *= block**2
    module = Reversible(steps).double().eval()
    x1, x2 = pair()[0].detach().chunk(2, 1)
    with torch.no_grad():
        back = module.inverse(*module(x1, x2))
    for one, other in zip((x1, x2), back, strict=True):
        assert float((one - other).abs().max()) < 1e-10


def test_space_to_depth_has_the_place_in_the_block_slowest() -> None:
    x = torch.arange(2.0 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    y = space_to_depth(x, 2)
    expected = torch.cat([x[:, :, row::2, column::2] for row in range(2) for column in range(2)], 1)
    assert torch.equal(y, expected)
    assert torch.equal(depth_to_space(y, 2), x)


def test_drift_is_measured_on_request_and_begins_anew_in_each_row() -> None:
    rows = [row(6), row(6)]
    x1, x2 = pair(torch.float32)[0].chunk(2, 1)
    for one in rows:
        one.monitored = True
        x1, x2 = one(x1, x2)
    assert rows[0].drift() is None
    (x1 * x2).sum().backward()
    drifts = [one.drift() for one in rows]
    assert all(drift is not None and 0 < drift < 1e-4 for drift in drifts)

    # The inputs of the second row are the outputs that the first one keeps: an error in the second does not pass on.
    class Lossy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 1e7

    lossy = Reversible([AdditiveStep(Lossy())])
    lossy.monitored = True
    y = lossy(*rows[0](*pair(torch.float32)[0].chunk(2, 1)))
    y[1].sum().backward()
    drift = lossy.drift()
    assert drift is not None
    assert drift > 0.01
    assert rows[0].drift() == drifts[0]


def change_a_weight(module: Reversible) -> None:
    with torch.no_grad():
        next(module.parameters()).add_(1.0)


def change_the_statistics(module: Reversible) -> None:
    module.train()(*pair()[0].chunk(2, 1))
    module.eval()


@pytest.mark.parametrize("change", [change_a_weight, change_the_statistics, Reversible.train])
def test_what_changes_before_the_backward_pass_is_an_error(change: Callable[[Reversible], object]) -> None:
    module = row(2).double().eval()
    y = module(*pair()[0].chunk(2, 1))
    change(module)
    with pytest.raises(RuntimeError, match="was changed between its forward and backward pass"):
        y[0].sum().backward()


def test_hooks_of_weights_see_sums_once() -> None:
    """Of a step that occurs twice as well."""
    module = row(1).double()
    module = Reversible([*module, *module])
    expected = trained(plain(module), *pair())[2:]
    seen: list[Tensor] = []

    def double(gradient: Tensor) -> Tensor:
        seen.append(gradient)
        return 2.0 * gradient

    weights = list(module.parameters())
    hooks = [weight.register_hook(double) for weight in weights]
    y1, y2 = module(*(x := pair())[0].chunk(2, 1), x[1])
    (y1.sin().sum() + (y1 * y2).square().sum()).backward()
    assert len(seen) == len(hooks)
    for weight, gradient in zip(weights, expected[: len(weights)], strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, 2.0 * gradient)


def test_weights_given_by_a_functional_call_get_gradients() -> None:
    module, inputs = row(3).double(), pair()
    weights = {name: (1.5 * weight).detach().requires_grad_() for name, weight in module.named_parameters()}
    found = []
    for one in (module, plain(module)):
        y1, y2 = functional_call(one, weights, (*inputs[0].chunk(2, 1), inputs[1]))
        found.append(torch.autograd.grad((y1 * y2).sin().sum(), [*inputs, *weights.values()]))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_functions_give_the_same_step() -> None:
    module = row(1, dropout=0.5)
    module.compile(backend="aot_eager")
    assert_equal_steps(module, pair(torch.float32)[:1], 1e-4)


def test_a_stack_changes_both_halves_in_every_cell_and_refuses_odd_widths() -> None:
    stack = ReversibleStack(4, 1, Function).double()
    x = pair()[0]
    y1, y2 = stack(x).chunk(2, 1)
    first, second = (step.function for step in copy.deepcopy(stack).row)
    x1, x2 = x.chunk(2, 1)
    torch.testing.assert_close(y1, x1 + first(x2))
    torch.testing.assert_close(y2, x2 + second(y1))
    with pytest.raises(ValueError, match=r"reversible: got residual cells of 5 channels, expected an even number"):
        ReversibleStack(5, 1, Function)
