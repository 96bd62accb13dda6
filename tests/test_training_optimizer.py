"""One optimizer call for each tensor does what one for each operation does."""

from __future__ import annotations

import copy

import torch
from tiny import vae

from davi.training import TrainingConfig
from davi.training.optimizer import make_optimizer


def test_the_fused_step_is_the_plain_one() -> None:
    """In either layout of the memory, also after moments were put back; without weight decay of single numbers."""
    for layout in (torch.contiguous_format, torch.channels_last):
        model = vae().to(memory_format=layout)  # type: ignore[call-overload]  # missing in torch's annotations
        other = copy.deepcopy(model)
        config = TrainingConfig(steps=1, optimizer="adamw", weight_decay=0.1, learning_rate=0.01)
        optimizer = make_optimizer(model, config)
        groups = [
            {"params": [p for p in other.parameters() if p.ndim], "weight_decay": 0.1},
            {"params": [p for p in other.parameters() if not p.ndim], "weight_decay": 0.0},
        ]
        plain = torch.optim.AdamW(groups, lr=0.01, betas=config.betas, eps=config.eps, foreach=False)
        x = torch.randint(2, (4, 1, 4, 4), dtype=torch.uint8)
        for step in range(4):
            for one, its in ((model, optimizer), (other, plain)):
                torch.manual_seed(step)
                (-one(x).log_px.mean()).backward()
                its.step()
                its.zero_grad()
            if step == 1:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
            # Four steps of 0.01; each rounds differently, and Adam divides small gradients by small numbers.
            torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-5)
