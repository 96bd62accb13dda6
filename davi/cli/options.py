"""What can be written after ``davi``: verbs, their options, and dotted overrides of a recipe's options.

argparse knows the few fixed options of each verb. Dotted ones (``--model.width 32``) are as many as a model and the
loop have options; they are put aside unread, and :mod:`davi.config` judges them with the recipe.
"""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from davi import __version__
from davi.errors import UserError


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Arguments:
        verb: the first word.
        options: the fixed options of that verb, by their names in :data:`VERBS`.
        assignments: the dotted overrides, in order, as :func:`davi.config.override` takes them.
    """

    verb: str
    options: argparse.Namespace
    assignments: list[str]


@dataclass(frozen=True)
class Verb:
    """A verb of the program.

    Arguments:
        summary: one line.
        add: adds its options to a parser.
        sections: sections of a recipe whose options may be overridden.
        example: how it is used.
    """

    summary: str
    add: Callable[[argparse.ArgumentParser], None]
    sections: tuple[str, ...]
    example: str


class _Parser(argparse.ArgumentParser):
    """argparse, with errors that the program turns into one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))


def parse(argv: Sequence[str]) -> Request:
    """Understand the words after ``davi``.

    Raises:
        UserError: one line about the first word that makes no sense.
        SystemExit: after showing a help text or the version.
    """
    if not argv or argv[0].startswith("-"):
        _top().parse_args(argv[:1])
        raise UserError(f"verb: got nothing, expected one of {', '.join(VERBS)} (davi --help)")
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
        raise UserError(f"{rest[0]}: unknown {what} of davi {verb}{_nearest(rest[0], known)}")
    for word in assignments:
        section = word.removeprefix("--").partition(".")[0]
        if section not in VERBS[verb].sections:
            allowed = " or ".join(f"--{name}.OPTION" for name in VERBS[verb].sections) or "no dotted options"
            raise UserError(f"{word.partition('=')[0]}: cannot be used with davi {verb}, expected {allowed}")
    if getattr(options, "data", None) is not None:
        # Assignments are read as YAML, in which a quoted path is that path whatever it holds.
        assignments = [f"--data.set={json.dumps(options.data)}", *assignments]
    return Request(verb, options, assignments)


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


def _nearest(word: str, known: Sequence[str] | dict[str, Verb]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _top() -> argparse.ArgumentParser:
    """The parser of ``davi`` without a verb: it only shows help and the version."""
    verbs = "\n".join(f"  {name:<13}{verb.summary}" for name, verb in VERBS.items())
    parser = _Parser(
        prog="davi",
        usage="davi VERB ...",
        description="Deep generative models of images that say how probable an image is.",
        epilog=f"verbs:\n{verbs}\n\ndavi VERB --help tells more. A first model: davi train attentive_digits",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"davi {__version__}")
    return parser


def _whole(minimum: int) -> Callable[[str], int]:
    """Reads a whole number that is at least ``minimum``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum or value >= 2**63:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from {minimum}")
        return value

    return read


def _not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number from 0")
    return value


def _picture(text: str) -> str:
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected the path of a .png file")
    return text


def _one_of(*choices: str) -> Callable[[str], str]:
    """Reads one of the words. argparse's own check says what it found in words that change with Python's version."""

    def read(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected one of {', '.join(choices)}")
        return text

    return read


def _add_recipes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", type=_one_of("list", "show"), default="list", help="list or show")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the recipe to show")


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="name of a recipe, or path of a .yaml file")
    parser.add_argument("--data", metavar="SET", help="name of a set, or path of a .npy or .npz file")
    parser.add_argument("--run", metavar="DIR", help="folder of the run (default: runs/RECIPE-1, -2, ...)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in DIR; RECIPE may be left out")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of a run, or its model.safetensors")
    parser.add_argument("--device", metavar="DEVICE", help="where to compute (default: cuda if there is one, else cpu)")


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="SET", help="another set, or path of a .npy or .npz file")
    splits = _one_of("test", "validation", "train")
    parser.add_argument("--split", type=splits, default="test", help="test (default), validation or train")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    _add_split(parser)
    positive = _whole(1)
    parser.add_argument(
        "--importance-samples",
        type=positive,
        default=1,
        metavar="K",
        help="draws of each image (default: 1, the ELBO)",
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N images")
    parser.add_argument("--seed", type=_whole(0), default=0, metavar="S", help="of all draws (default: 0)")
    parser.add_argument("--batch-size", type=positive, default=100, metavar="B", help="images a pass (default: 100)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _add_sample(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--n", type=_whole(1), default=64, metavar="N", help="number of images (default: 64)")
    parser.add_argument(
        "--temperature", type=_not_negative, default=1.0, metavar="T", help="scale of the priors' spread (default: 1)"
    )
    parser.add_argument("--seed", type=_whole(0), default=0, metavar="S", help="of all draws (default: 0)")
    parser.add_argument("--out", type=_picture, metavar="FILE.png", help="default: RUN/samples.png")


def _add_reconstruct(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    _add_split(parser)
    parser.add_argument("--n", type=_whole(1), default=32, metavar="N", help="the first N images (default: 32)")
    parser.add_argument("--out", type=_picture, metavar="FILE.png", help="default: RUN/reconstructions.png")


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("form", type=_one_of("attentive"), metavar="FORM", help="attentive: its authors' Keras weights")
    parser.add_argument("file", metavar="FILE", help="the file (.h5)")
    parser.add_argument("--run", metavar="DIR", required=True, help="folder of the run that is made, new or empty")
    parser.add_argument("--recipe", metavar="RECIPE", help="take what the file does not tell from this recipe")
    parser.add_argument("--data", metavar="SET", help="set the model is for, or path of a .npy or .npz file")


VERBS: dict[str, Verb] = {
    "recipes": Verb(
        "list the recipes, or show one of them as YAML",
        _add_recipes,
        (),
        "davi recipes show attentive_mnist > my.yaml",
    ),
    "train": Verb(
        "train the model of a recipe and leave a run folder",
        _add_train,
        ("model", "data", "training"),
        "Any option of the recipe can be overridden:\n"
        "  davi train attentive_mnist --model.layers '[4, 8]' --training.minutes 30 --data.root DIR\n"
        "  davi train --run runs/attentive_mnist-1 --resume",
    ),
    "evaluate": Verb(
        "say how probable a trained model finds images",
        _add_evaluate,
        ("data",),
        "The numbers are also written to RUN/evaluation.json.\n  davi evaluate runs/demo --importance-samples 100",
    ),
    "sample": Verb("draw images from a trained model", _add_sample, (), "davi sample runs/demo --temperature 0.8"),
    "reconstruct": Verb(
        "show images beside what a trained model makes of their latents",
        _add_reconstruct,
        ("data",),
        "davi reconstruct runs/demo --split validation",
    ),
    "import": Verb(
        "make a run of weights that others published",
        _add_import,
        ("model", "data"),
        "davi import attentive final_model.h5 --run runs/published",
    ),
}
"""All verbs, in the order in which they are shown."""
