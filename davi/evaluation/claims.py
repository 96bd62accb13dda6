"""The claim of a result in words: what kind it is, and its errors."""

from __future__ import annotations

from davi.evaluation.result import Result
from davi.evidence import Kind
from davi.formatting import DIGITS, significant
from davi.model.energy import NEGATIVE_LOG_Z
from davi.quantity import Quantity, Statistic

_CLAIMS = {
    Kind.EXACT: "exact: this is {}",
    Kind.LOWER_BOUND: "lower bound: {} is at least this",
    Kind.ESTIMATE: "estimate: {} may be more or less; not to be ranked among bounds",
}
_WERE_IT_KNOWN = {Kind.EXACT: "exact", Kind.LOWER_BOUND: "a lower bound", Kind.ESTIMATE: "an estimate still"}


def kind_in_words(result: Result) -> str:
    """What kind of claim the number is; of an estimate, what it would be if log Z were exact, and whether another K
    would change it."""
    words = _CLAIMS[result.kind].format(result.log_p)
    if result.log_z is not None and result.log_z.kind is not Kind.EXACT:
        words += f"; were log Z known, this would be {_WERE_IT_KNOWN[result.log_z.claim]}"
    if result.bound.samples > 1 and result.deterministic:
        words += "; nothing is drawn for it, so it does not depend on K"
    return words


def both_errors(result: Result, unit: str, cost: bool = False) -> str | None:
    """The headline with its two errors, ``-84.90 ± 0.50 over images, ± 0.30 from log Z``; None where log Z adds none.

    Arguments:
        result: of an evaluation.
        unit: ``"nats"`` or ``"bits_per_dim"``.
        cost: turn the sign of nats.
    """
    added = None if result.log_z is None else result.log_z.error(unit)
    if added is None:
        return None
    found = result.bound.in_unit(unit)
    mean = Statistic(-found.mean if cost and unit == "nats" else found.mean, found.standard_error)
    over = "" if found.standard_error is None else " over images"
    shown = significant(Statistic(added, added), DIGITS[unit]).partition(" ")[0]
    return f"{significant(mean, DIGITS[unit])}{over}, ± {shown} from log Z"


def terms_with_errors(result: Result) -> dict[str, Quantity]:
    """The terms of a result but for those of latent layers. That of log Z is the same for all images, so its error over
    them is 0: it has that of log Z instead."""
    terms = dict(result.terms)
    if result.log_z is not None and NEGATIVE_LOG_Z in terms:
        nats, bits = (terms[NEGATIVE_LOG_Z].in_unit(unit).mean for unit in ("nats", "bits_per_dim"))
        errors = result.log_z.error("nats"), result.log_z.error("bits_per_dim")
        terms[NEGATIVE_LOG_Z] = Quantity(Statistic(nats, errors[0]), Statistic(bits, errors[1]))
    return terms
