"""What is told of a partition function, and when not to trust it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import pytest
import torch
from torch import Generator, Tensor
from toys.boltzmann import Boltzmann, BoltzmannConfig

from davi import records
from davi.evaluation import importance_bound
from davi.evaluation.log_z import LogZ, log_z_of
from davi.evidence import Kind
from davi.model import Normalized, Partition

SOUND = Partition(100.0, Kind.ESTIMATE, 99.9, 100.09, 80.0, 100, 500)
SHAPE = (1, 2, 3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"effective_samples": 50.0}, None),
        ({"effective_samples": 49.0}, "only 49 of 100 chains are effective, fewer than half"),
        ({"low": -math.inf}, "the interval of Z reaches 0: log p(x) may be far lower than estimated"),
        ({"reverse": 100.2, "reverse_low": 100.0, "reverse_high": 100.4}, None),
        (
            {"reverse": 100.2, "reverse_low": 100.1, "reverse_high": math.inf},
            "chains that walk forward and back disagree",
        ),
        ({"reverse": 99.0, "reverse_low": 98.0, "reverse_high": 99.8}, "chains that walk forward and back disagree"),
    ],
)
def test_reasons_for_doubt(changes: Mapping[str, float], said: str | None) -> None:
    facts = {**vars(SOUND), **changes}
    warnings = log_z_of(Partition(**facts), Kind.EXACT, 6).warnings
    if said is None:
        assert warnings == ()
    else:
        assert warnings[0].startswith(said)
        assert warnings[1].endswith("more temperatures help: --ais-temperatures 1000")


def test_infinite_limits_are_null_and_a_word() -> None:
    facts = {**vars(SOUND), "low": -math.inf, "reverse": 100.0, "reverse_low": 99.0, "reverse_high": math.inf}
    found = log_z_of(Partition(**facts), Kind.LOWER_BOUND, 6)
    told = json.loads(json.dumps(records.to_json(found), allow_nan=False))
    assert (told["low"], told["high"], told["reverse"]["high"]) == (None, 100.09, None)
    assert told["unlimited"].startswith("no lower limit")
    assert records.read(LogZ, told, "file") == found
    texts = dict(found.facts())
    assert texts["log Z, interval"].startswith("at most 100.090; no lower limit")
    assert "at least 99.000; no upper limit" in texts["log Z, reverse estimate"]


def test_the_error_is_that_of_z() -> None:
    error = 0.125
    found = Partition(10.0, Kind.ESTIMATE, -math.inf, 10.0 + math.log1p(3 * error))
    assert found.standard_error == pytest.approx(error)
    told = log_z_of(found, Kind.EXACT, 6)
    assert told.error("bits_per_dim") == pytest.approx(error / (6 * math.log(2.0)))
    assert told.error_of_difference == math.inf  # whose interval has no end
    exact = log_z_of(Partition(10.0, Kind.EXACT), Kind.EXACT, 6)
    assert (exact.standard_error, exact.error_of_difference, exact.warnings) == (None, 0.0, ())


def test_a_claim_without_draws_is_asked_once_whatever_k_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Normalized(Boltzmann(SHAPE, 2, BoltzmannConfig()), SOUND)
    x = torch.randint(2, (4, *SHAPE), dtype=torch.uint8)
    evidence = model.evidence(x)
    assert evidence.deterministic
    assert evidence.kind is Kind.ESTIMATE
    asked, free_energy = [], Boltzmann.free_energy

    def counted(self: Boltzmann, x: Tensor, generator: Generator | None = None) -> Tensor:
        asked.append(len(x))
        return free_energy(self, x, generator)

    monkeypatch.setattr(Boltzmann, "free_energy", counted)
    assert importance_bound(model, x, 50).tolist() == evidence.log_px.double().tolist()
    assert asked == [4]
