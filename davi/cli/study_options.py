"""The options of ``davi study``."""

from __future__ import annotations

import argparse

from davi.cli.readers import one_of, positive, whole_number

ACTIONS = ("list", "show", "run", "table")

EXAMPLE = (
    "run trains and measures all arms, in turns, and goes on where it was killed; table makes the tables of what is\n"
    "there. --data.OPTION and --training.OPTION change all arms.\n"
    "  davi study list\n"
    "  davi study show attention\n"
    "  davi study run attention --minutes 15 --seeds 3 --data.root DIR\n"
    "  davi study table studies/attention"
)


def add_study(parser: argparse.ArgumentParser) -> None:
    """Add them to a parser."""
    count = whole_number(1)
    parser.add_argument("action", type=one_of(*ACTIONS), metavar="|".join(ACTIONS), help="what to do")
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="name of a study or path of a .yaml file; for table: its folder"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="folder of the study (default: studies/NAME); of table: where to write it"
    )
    parser.add_argument("--minutes", type=positive, metavar="M", help="train each arm so long; or:")
    parser.add_argument(
        "--cpu-minutes", type=positive, metavar="M", help="so long in CPU time: as many steps as are measured to fit"
    )
    parser.add_argument("--steps", type=count, metavar="N", help="in steps")
    parser.add_argument("--seeds", type=count, metavar="S", help="trainings of each arm; later S may be larger")
    parser.add_argument("--limit", type=count, metavar="N", help="measure N images, spread evenly over the set")
    parser.add_argument("--importance-samples", type=count, metavar="K", help="draws of each image")
    parser.add_argument("--arm", type=count, metavar="K", help="run the Kth arm alone, for an array of jobs")
    parser.add_argument("--turn", type=positive, metavar="M", help="minutes of training until the next arm goes on")
