"""The last lines after an evaluation or inspection: the number in words, the files, the next command, what to try."""

from __future__ import annotations

import shlex
from pathlib import Path

from davi import recipes
from davi.evaluation.claims import both_errors
from davi.evaluation.classification import BLIND_GUESS, ERROR_RATE
from davi.evaluation.result import Result
from davi.evidence import About, Kind
from davi.formatting import decimals, with_error
from davi.model import Claiming
from davi.objectives.remedies import Remedy, remedies
from davi.quantity import Quantity, Statistic, from_bits
from davi.report import which_images
from davi.runs import RECIPE
from davi.sets import is_named

_PICTURES = ("samples.png", "reconstructions.png")
_CLAIMS = {Kind.EXACT: "", Kind.LOWER_BOUND: "at most ", Kind.ESTIMATE: "about "}
"""What a cost is, whose log-probability is exact, at least this, or an estimate."""
_WORDS = {"nats": "nats an image", "bits_per_dim": "bits/dim"}
_DIGITS = {"nats": 1, "bits_per_dim": 3}


def closing(result: Result, folder: Path, page: Path) -> str:
    """Three lines.

    Arguments:
        result: of the evaluation.
        folder: of the run.
        page: the inspection page.
    """
    files = (page, *(folder / name for name in _PICTURES if (folder / name).is_file()))
    following = f"davi compare {shlex.quote(str(folder))} OTHER-RUN  (which of two runs is better)"
    if is_named(result.protocol.data.set or "") and result.about is not About.Y_GIVEN_X:
        own = f"{result.protocol.model.name}_photos"
        recipe = own if own in recipes.names() else "attentive_photos"
        following = f"davi train {recipe} --data FOLDER  (on images of your own)"
    number = _number(result) if result.about is not About.Y_GIVEN_X else _of_classes(result)
    return f"number: {number}\nopen:   {', '.join(map(str, files))}\nnext:   {following}"


def to_try(model: Claiming, folder: Path, result: Result) -> Remedy | None:
    """What to try where layers are inactive, with the objective of the run's recipe; None if there is nothing.

    Arguments:
        model: of the run.
        folder: of the run, which may lack a recipe.
        result: of the evaluation.
    """
    inactive = () if result.kl is None else result.kl.inactive
    if not inactive:
        return None
    recipe = recipes.load(folder / RECIPE) if (folder / RECIPE).is_file() else None
    training = None if recipe is None or recipe.stages else recipe.training
    found = remedies(model, None if training is None else training.objective, inactive)
    return found[0] if found else None


def _number(result: Result) -> str:
    """The cost of the measured images, and that of independent pixels; lower is better."""
    first, second = result.units
    costs, error = result.bound, result.bound.in_unit(first).standard_error
    within = "" if error is None else f" ± {error:.{_DIGITS[first]}f}"
    both = both_errors(result, first, cost=True)
    number = f"{_cost(costs, first)}{within}" if both is None else f"{both},"
    line = (
        f"{result.protocol.set} costs {_CLAIMS[result.kind]}{number} {_WORDS[first]} "
        f"({_cost(costs, second)} {_WORDS[second]})"
    )
    for baseline in result.baselines:
        if baseline.name == "independent pixels" and baseline.bits_per_dim is not None:
            line += f"; independent pixels {_cost(from_bits(baseline.bits_per_dim, None, result.protocol.dims), first)}"
    return f"{line} ({which_images(result.protocol)})"


def _of_classes(result: Result) -> str:
    """What a classifier's number says of the measured images; lower is better."""
    claim, wrong, guess = result.bound.nats, result.measure(ERROR_RATE), result.measure(BLIND_GUESS)
    cost = with_error(Statistic(-claim.mean, claim.standard_error), decimals(result.bound, "nats"))
    line = f"the class of an image of {result.protocol.set} costs {cost} nats"
    if guess is not None:
        line += f", a blind guess {-guess.value:.4f}"
    if wrong is not None:
        line += f"; {wrong.value:.4g} % are put into another class"
    return f"{line} ({which_images(result.protocol)})"


def _cost(values: Quantity, unit: str) -> str:
    """A log-probability as what it costs: nats of it are negative, bits are not."""
    mean = values.in_unit(unit).mean
    return f"{-mean if unit == 'nats' else mean:.{_DIGITS[unit]}f}"
