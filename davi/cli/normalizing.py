"""What verbs do about partition functions: estimate one that is missing, or say how to."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from davi import estimates, partition
from davi.cli.options import Request
from davi.data import Images
from davi.errors import UserError
from davi.evidence import Kind
from davi.model import Claiming, Unnormalized, WithPartition
from davi.partition import Annealing
from davi.progress import ProgressBar

_OPTIONS = ("temperatures", "chains", "base", "reverse", "again")


def normalized(request: Request, model: Claiming, folder: Path, train: Images | None) -> Claiming:
    """The model with a partition function; what is not known, or was estimated in another way than the user asks for,
    is estimated now and kept in the folder of the run.

    Arguments:
        request: with the options ``--ais-...``, if the verb has them.
        model: of the run, on its device.
        folder: of the run.
        train: training images, whose mean an estimate begins with; None: there are none.

    Raises:
        UserError: if options say how to estimate what needs no estimate, or none can be made.
    """
    given = {name: value for name in _OPTIONS if (value := getattr(request.options, f"ais_{name}", None))}
    known = model.partition if isinstance(model, WithPartition) else None
    network = model.saved
    if given and (not isinstance(network, Unnormalized) or (known is not None and known.kind is Kind.EXACT)):
        why = "whose partition function is known exactly" if known is not None else "which needs no partition function"
        raise UserError(f"--ais-{next(iter(given))}: got it for {model.name}, {why}; expected no such option")
    again = given.pop("again", False)
    how = Annealing(**given)
    if not isinstance(network, Unnormalized) or (known is not None and not again and (not given or how.fits(known))):
        return model
    if known is not None:
        how = how.like(known)
    with ProgressBar("estimating log Z", unit="steps") as progress:
        found = partition.estimate(network, train, how, request.options.seed, progress)
    try:
        where = f"kept in {partition.write(network, folder, found)}"
    except UserError as error:  # a run may be read-only, and minutes of work shall not be lost
        where = f"not kept: {error}"
    print(f"log Z: {where}", file=sys.stderr)
    return network.normalized(found).eval()


def estimated(request: Request, model: Claiming, folder: Path, train: Images | None) -> Claiming:
    """The model, after its partition function was estimated with every number of temperatures that is compared
    (:data:`davi.estimates.TEMPERATURES`) and not yet kept, with the most of them from both ends. If it was not known,
    it is now.

    Arguments:
        request, model, folder, train: as of :func:`normalized`.

    Raises:
        UserError: if the model needs no partition function, none can be estimated, or it cannot be kept.
    """
    network = model.saved
    if not isinstance(network, Unnormalized) or not isinstance(model, WithPartition):
        why = "which needs no partition function"
        raise UserError(f"--estimates: got it for {model.name}, {why}; expected no such option")
    most = max(estimates.TEMPERATURES)
    for count in estimates.TEMPERATURES:
        how = Annealing(count, reverse=count == most)
        if any(how.fits(one) for one in estimates.kept(network, folder)):
            continue
        with ProgressBar(f"estimating log Z, {count:,} temperatures", unit="steps") as progress:
            estimates.keep(network, folder, partition.estimate(network, train, how, request.options.seed, progress))
    if model.partition is not None:
        return model
    found = estimates.kept(network, folder)[-1]
    partition.write(network, folder, found)
    return network.normalized(found).eval()


def check_likelihood(model: Claiming, folder: Path) -> None:
    """Refuse a model that has no likelihood before its partition function is known.

    Raises:
        UserError: with the command that estimates it.
    """
    if isinstance(model, WithPartition) and model.partition is None:
        raise UserError(
            f"run: {folder} has no partition function for its weights, expected one: without it there is no "
            f"likelihood; davi evaluate {shlex.quote(str(folder))} estimates it"
        )
