"""Whether a step may change the weights.

One bad batch can undo hours. A fixed limit on the gradient norm protects against it, but it also ends a run silently:
when the norms rise for good, every step is skipped for ever. Here the limit is a multiple of a running quantile of
*all* recent finite norms, those of skipped steps included, so that it follows a lasting rise; and after a number of
skips in a row one step is taken anyway, scaled down to the limit. That holds for a fixed limit, too, where a recipe has
one (the Very Deep VAE's: clip at one norm, skip above a larger one).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from davi.training.sections import StepFilterConfig

FEWEST = 10
"""Norms that must be known before a quantile of them is trusted."""


@dataclass(frozen=True)
class Verdict:
    """What is done with a step.

    Arguments:
        update: whether the weights change.
        reason: why not, or ``forced`` for a step taken after too many skips; None for an ordinary step.
        limit: longest gradient allowed in the update; infinite without clipping.
        threshold: norm above which steps are skipped; infinite while it is unknown or switched off.
    """

    update: bool
    reason: Literal["loss", "gradient", "norm", "forced"] | None
    limit: float
    threshold: float


class StepFilter:
    """Judges every step by its loss and its gradient norm.

    Arguments:
        config: the recipe's section.
    """

    def __init__(self, config: StepFilterConfig) -> None:
        self.config = config
        self.norms: deque[float] = deque(maxlen=config.skip_window)
        self.skips = 0
        """Finite steps skipped in a row."""
        self.nonfinite = 0
        """Steps in a row whose loss or gradient was not finite."""
        self.steps = 0
        """Steps judged."""
        self.bad: deque[int] = deque(maxlen=config.nonfinite_limit)
        """Which of them were the last whose loss or gradient was not finite."""

    def threshold(self) -> float:
        """Norm above which the next step is skipped."""
        fixed = self.config.skip_norm or math.inf
        if not self.config.skip_factor or len(self.norms) < min(FEWEST, self.config.skip_window):
            return fixed
        ordered = sorted(self.norms)
        return min(fixed, self.config.skip_factor * ordered[round(self.config.skip_quantile * (len(ordered) - 1))])

    def judge(self, loss: float, norm: float) -> Verdict:
        """What to do with a step; remembers its norm.

        Arguments:
            loss: the objective.
            norm: length of the whole gradient before clipping.
        """
        threshold = self.threshold()
        self.steps += 1
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.nonfinite += 1
            self.bad.append(self.steps)
            return Verdict(False, "gradient" if math.isfinite(loss) else "loss", math.inf, threshold)
        self.nonfinite = 0
        self.norms.append(norm)
        limit = self.config.clip_norm or math.inf
        if norm <= threshold:
            self.skips = 0
            return Verdict(True, None, limit, threshold)
        if self.skips < self.config.skip_limit:
            self.skips += 1
            return Verdict(False, "norm", limit, threshold)
        self.skips = 0
        return Verdict(True, "forced", min(limit, threshold), threshold)

    def hopeless(self) -> bool:
        """Whether ``nonfinite_limit`` of the last twice as many steps were not finite, in a row or scattered."""
        limit = self.config.nonfinite_limit
        return len(self.bad) == limit and self.steps - self.bad[0] < 2 * limit

    def account(self, step: int) -> str:
        """Why the run is given up, at this step."""
        count, among, good = self.nonfinite, "steps in a row", step - self.nonfinite
        if count < self.config.nonfinite_limit:
            count, among = self.config.nonfinite_limit, f"of the last {2 * self.config.nonfinite_limit} steps"
        last = f", the last good one was step {good}" if good else ""
        return f"{count} {among} without finite loss and gradient up to step {step}{last}"

    def forget(self) -> None:
        """Reset the count of steps that were not finite, so that earlier failures do not count after a rollback."""
        self.nonfinite = 0
        self.bad.clear()

    def state_dict(self) -> dict[str, Any]:
        """Everything the next verdict depends on; JSON keeps every bit of it."""
        return {
            "norms": list(self.norms),
            "skips": self.skips,
            "nonfinite": self.nonfinite,
            "steps": self.steps,
            "bad": list(self.bad),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.norms = deque(map(float, state["norms"]), maxlen=self.config.skip_window)
        self.skips, self.nonfinite = int(state["skips"]), int(state["nonfinite"])
        self.steps = int(state["steps"])
        self.bad = deque(map(int, state["bad"]), maxlen=self.config.nonfinite_limit)
