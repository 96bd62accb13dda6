"""The command line of ``davi``: verbs, their options, and dotted overrides of a recipe's options.

argparse knows the few fixed options of each verb. Dotted ones (``--model.width 32``) are as many as a model and the
loop have options; they are put aside unread, and :mod:`davi.config` judges them with the recipe.
"""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from davi import __version__
from davi.cli.verbs import BUDGETS, SHORT, VERBS
from davi.errors import UserError
from davi.sets import GEOMETRY


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Arguments:
        verb: the first word.
        options: the fixed options of that verb, by their names in :data:`davi.cli.verbs.VERBS`.
        assignments: the dotted overrides, in order, as :func:`davi.config.override` takes them.
    """

    verb: str
    options: argparse.Namespace
    assignments: list[str]


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose errors become one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))


def parse(argv: Sequence[str]) -> Request:
    """Understand the words after ``davi``.

    Raises:
        UserError: one line about the first word that makes no sense.
        SystemExit: after showing a help text or the version.
    """
    if not argv or argv[0].startswith("-"):
        _top().parse_args(argv[:1] or ["--help"])
    verb, words = argv[0], list(argv[1:])
    if verb not in VERBS:
        raise UserError(f"verb: got {verb!r}, expected one of {', '.join(VERBS)}{_nearest(verb, VERBS)}")
    words, assignments = _split(words)
    parser = _Parser(
        prog=f"davi {verb}",
        description=VERBS[verb].summary,
        epilog=VERBS[verb].example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    VERBS[verb].add(parser)
    options, rest = parser.parse_known_args(words)
    if rest:
        known = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
        what = "option" if rest[0].startswith("-") else "word"
        hint = _nearest(rest[0], known) or _dotted(rest[0], VERBS[verb].sections)
        name = rest[0].partition("=")[0] if what == "option" else rest[0]
        raise UserError(f"{name}: unknown {what} of davi {verb}{hint}")
    for word in assignments:
        section = word.removeprefix("--").partition(".")[0]
        if section not in VERBS[verb].sections:
            allowed = " or ".join(f"--{name}.OPTION" for name in VERBS[verb].sections) or "no dotted options"
            raise UserError(f"{word.partition('=')[0]}: cannot be used with davi {verb}, expected {allowed}")
    if getattr(options, "skip_unreadable", False):
        assignments = ["--data.skip_unreadable=true", *assignments]
    if verb == "train":
        assignments = [*_spelled_out(options), *assignments]
    if getattr(options, "data", None) is not None:
        assignments = [set_assignment("--data", options.data), *assignments]
    return Request(verb, options, assignments)


def _spelled_out(options: argparse.Namespace) -> list[str]:
    """Expand the short options of ``davi train``. A budget replaces the recipe's."""
    given = {name: getattr(options, name) for name in SHORT if getattr(options, name) is not None}
    budget = [name for name in BUDGETS if name in given]
    undone = [f"--{SHORT[name]}=null" for name in BUDGETS if budget and name not in given]
    return [*undone, *(f"--{SHORT[name]}={value}" for name, value in given.items())]


def set_assignment(option: str, data: str) -> str:
    """The override that chooses a set of images.

    Arguments:
        option: with which the user has named it.
        data: its name or path.

    Raises:
        UserError: if it is the name of a set and of a folder here as well: one of the two would be taken silently.
    """
    if data in GEOMETRY and Path(data).is_dir():
        raise UserError(
            f"{option}: got {data}, which is a named set and also a folder here, expected ./{data} for the folder "
            f"(or --data.set {data} for the set)"
        )
    # Assignments are read as YAML, in which a quoted path is that path whatever it holds.
    return f"--data.set={json.dumps(data)}"


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """The words without the dotted options, and those as ``--section.option=value``."""
    plain: list[str] = []
    dotted: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if not (name.startswith("--") and "." in name):
            plain.append(word)
            continue
        following = value if equals else next(rest, None)
        if following is None or (not equals and following.startswith("--")):
            raise UserError(f"{name}: got no value, expected {name} VALUE")
        dotted.append(f"{name}={following}")
    return plain, dotted


def _nearest(word: str, known: Iterable[str]) -> str:
    """A hint at the known word that is most like this one; nothing if none is."""
    # Without the dashes, which would make any two short options alike.
    plain = {name.lstrip("-"): name for name in known}
    near = difflib.get_close_matches(word.partition("=")[0].lstrip("-"), plain, n=1, cutoff=0.7)
    return f"; did you mean {plain[near[0]]}?" if near else ""


def _dotted(word: str, sections: Sequence[str]) -> str:
    """A hint at the option of a recipe whose last part is most like this word; nothing if none is.

    Which options there are is known to modules that load torch: only this mistake waits for them.
    """
    if not word.startswith("--") or not sections:
        return ""
    from davi.config import keys
    from davi.data import DataConfig
    from davi.models import MODELS
    from davi.training import TrainingConfig

    configs: dict[str, list[type]] = {
        "model": [cls.Config for cls in MODELS.values()],
        "data": [DataConfig],
        "training": [TrainingConfig],
    }
    names = [
        f"--{section}.{key}" for section in sections for config in configs.get(section, []) for key in keys(config)
    ]
    plain = word.lstrip("-").partition("=")[0].replace("-", "_")
    parts = {name.rpartition(".")[2]: name for name in reversed(names)}  # of several options, the first is named
    near = difflib.get_close_matches(plain, parts, n=1, cutoff=0.7)
    if not near:
        return ""
    found = parts[near[0]]
    return f"; did you mean {f'{found}.name' if f'{found}.name' in names else found}?"  # --optimizer adam


def _top() -> argparse.ArgumentParser:
    """The parser of ``davi`` without a verb: it only shows help and the version."""
    verbs = "\n".join(f"  {name:<13}{verb.summary}" for name, verb in VERBS.items())
    parser = _Parser(
        prog="davi",
        usage="davi VERB ...",
        description="Deep generative models of images that say how probable an image is.",
        epilog=f"verbs:\n{verbs}\n\ndavi VERB --help tells more. A first model: davi train attentive_mnist_demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"davi {__version__}")
    return parser
