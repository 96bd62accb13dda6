"""Weights of which every process keeps a share: fully sharded data parallelism (FSDP).

Gradients, moments and averaged weights are cut like the weights, along the first dimension. A block's weights are put
together for its forward and its backward pass, those outside the blocks for the whole step. Single numbers (gates)
cannot be cut; every process has them. Files hold whole tensors: a run may go on with shares or without.

References:
    PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, Y. Zhao et al., VLDB 2023,
    https://arxiv.org/abs/2304.11277

    ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, S. Rajbhandari, J. Rasley, O. Ruwase, Y. He,
    SC 2020, https://arxiv.org/abs/1910.02054
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import get_total_norm

from davi.model import Network
from davi.training.parallel import Processes


def shard(model: Network, copy: Network, processes: Processes) -> None:
    """Leave this process its share of a model's weights, in place.

    Arguments:
        model: is called as a whole from here on, not by its methods, and gets gradients averaged over the processes
            except for single numbers (:func:`average_single_numbers`).
        copy: of the model, cut in the same way; it can be used within :func:`whole_again` only.
        processes: have the same weights.
    """
    mesh = init_device_mesh(next(model.parameters()).device.type, (processes.count,))
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # missing in torch's annotations
    single = {parameter for parameter in model.parameters() if not parameter.ndim}
    for block in model.blocks():
        fully_shard(block, mesh=mesh, ignored_params=single)
    fully_shard(model, mesh=mesh, ignored_params=single)
    _replace(copy, shares(dict(copy.named_parameters()), dict(model.named_parameters())))


def shares(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, cut as those of the same names are. No process waits for another."""
    return {name: share(tensor, own[name]) for name, tensor in tensors.items()}


def share(tensor: Tensor, own: Tensor) -> Tensor:
    """A whole tensor, cut as ``own`` is."""
    if not isinstance(own, DTensor):
        return tensor
    return distribute_tensor(tensor.detach().to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def whole(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors put together from the shares of all processes, on the CPU; those of which none is cut as they are.

    All processes have to call it.
    """
    if not any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        return tensors
    parts = ((name, x.full_tensor() if isinstance(x, DTensor) else x) for name, x in tensors.items())
    return {name: tensor.cpu() for name, tensor in parts}


@contextmanager
def whole_again(model: Network) -> Iterator[None]:
    """Put a copy (:func:`shard`) together while the block lasts. All processes have to call it."""
    own = {name: tensor for name, tensor in model.named_parameters() if isinstance(tensor, DTensor)}
    _replace(model, {name: tensor.full_tensor() for name, tensor in own.items()})
    try:
        yield
    finally:
        _replace(model, own)


def local(tensors: Sequence[Tensor]) -> list[Tensor]:
    """This process's shares, as plain tensors that can be changed in place."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def average_single_numbers(model: nn.Module, processes: Processes) -> None:
    """Replace the gradients of what is not cut by their means over the processes."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None and not isinstance(p.grad, DTensor)]
    if gradients:
        means = processes.sum(torch.stack(gradients)) / processes.count
        torch._foreach_copy_(gradients, list(means.unbind()))


def gradient_norm(parameters: Sequence[nn.Parameter], processes: Processes) -> Tensor:
    """Euclidean norm of the gradients of a model's parameters together, a scalar."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    cut = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    if gradients and not cut:  # what get_total_norm does, which looks for devices and types in every step
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    rest = get_total_norm([gradient for gradient in gradients if not isinstance(gradient, DTensor)])
    # Squares of float32 norms overflow, and a large norm would be taken for an infinite one.
    squares = processes.sum(get_total_norm(cut).double().square()) + rest.double().square()
    return squares.sqrt().float()


def _replace(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition(".")
        setattr(model.get_submodule(owner), key, nn.Parameter(tensor, requires_grad=False))
