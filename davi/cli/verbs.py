"""The verbs of the program, with their help and fixed options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from davi.cli.readers import array_or_folder, one_of, path_ending, shape, temperature, whole_number, whole_numbers
from davi.cli.study_options import EXAMPLE, add_study


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


def _add_recipes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WORD",
        help="list only recipes with all these words in their row, such as mnist or minutes; or: show NAME",
    )
    parser.add_argument("--all", action="store_true", help="list also those for tests")


SHORT = {
    "minutes": "training.minutes",
    "steps": "training.steps",
    "epochs": "training.epochs",
    "lr": "training.learning_rate",
    "batch_size": "training.batch_size",
    "seed": "training.seed",
    "on_nan": "training.step_filter.on_nan",
}
"""Options of ``davi train`` that are short for an option of a recipe, by their name in Python."""

BUDGETS = ("minutes", "steps", "epochs")
"""Those that say how long to train."""

_DATA = "name of a set, or path of a folder of images or of an array"
_SKIP = "leave out images of a folder that cannot be read, and say how many"


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="name of a recipe, or path of a .yaml file")
    parser.add_argument("--data", metavar="SET", help=_DATA)
    parser.add_argument("--skip-unreadable", action="store_true", help=_SKIP)
    parser.add_argument("--run", metavar="DIR", help="folder of the run (default: runs/RECIPE-1, -2, ...)")
    parser.add_argument("--minutes", metavar="M", help="how long to train, in place of the recipe's budget; or:")
    parser.add_argument("--steps", metavar="N", help="in steps")
    parser.add_argument("--epochs", metavar="N", help="in passes over the training images")
    parser.add_argument("--lr", metavar="RATE", help="highest learning rate (short for --training.learning_rate)")
    parser.add_argument("--batch-size", metavar="B", help="images a step (short for --training.batch_size)")
    parser.add_argument("--seed", metavar="S", help="of weights, order and draws (short for --training.seed)")
    _add_device(parser)
    parser.add_argument(
        "--from",
        dest="source",
        metavar="RUN",
        help="begin with the weights of this run, model.safetensors, or original checkpoint (.th, .pt, .h5); without "
        "RECIPE also with its model, images and training",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in DIR; RECIPE may be left out")
    parser.add_argument(
        "--on-nan",
        type=one_of("stop", "rollback"),
        metavar="WHAT",
        help="stop or rollback, if losses stay NaN or infinite (short for --training.step_filter.on_nan)",
    )
    parser.add_argument("--plan", action="store_true", help="take two steps, print memory and time, make no run")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="DEVICE", help="where to compute (default: cuda if there is one, else cpu)")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of a run, or its model.safetensors")
    _add_device(parser)


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        metavar="SET",
        help="other images: all of a folder, an array or a file; of a set with test images of its own, these",
    )
    parser.add_argument("--skip-unreadable", action="store_true", help=_SKIP)
    splits = one_of("test", "validation", "train", "all")
    parser.add_argument("--split", type=splits, help="test, validation, train or all (default: test, but see --data)")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    _add_split(parser)
    positive = whole_number(1)
    parser.add_argument(
        "--importance-samples",
        type=positive,
        metavar="K",
        help="draws of each image (default: 1, the ELBO)",
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="only N images, spread evenly over the set")
    parser.add_argument(
        "--gap", action="store_true", help="instead, divide what lies between the ELBO and log p(x), see below"
    )
    parser.add_argument("--gap-images", type=positive, metavar="N", help="images, spread evenly (default: 100)")
    parser.add_argument("--gap-steps", type=positive, metavar="N", help="to optimize each q (default: 500)")
    parser.add_argument("--gap-samples", type=whole_number(2), metavar="K", help="draws of each image (default: 5000)")
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="S", help="of all draws (default: 0)")
    parser.add_argument("--batch-size", type=positive, default=100, metavar="B", help="images a pass (default: 100)")
    parser.add_argument("--no-baselines", action="store_true", help="do not measure other methods for comparison")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    _add_annealing(parser)


def _add_annealing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("partition functions of energies, where they are no short sum")
    group.add_argument(
        "--ais-temperatures", type=whole_number(2), metavar="N", help="of annealed importance sampling (default: 14501)"
    )
    group.add_argument("--ais-chains", type=whole_number(2), metavar="N", help="(default: 100)")
    group.add_argument(
        "--ais-base",
        type=one_of("data", "uniform"),
        metavar="BASE",
        help="begin with the mean of training images, data (default where there are some), or with uniform noise",
    )
    group.add_argument("--ais-reverse", action="store_true", help="let chains walk the other way as well, to compare")
    group.add_argument("--ais-again", action="store_true", help="do not use the estimate that is kept")


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of evaluated runs; the first is the reference")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a table")
    form.add_argument("--markdown", action="store_true", help="print Markdown instead of a table")
    parser.add_argument("--out", metavar="FILE", help="write to FILE instead of printing")
    parser.add_argument("--strict", action="store_true", help="exit with status 2 if the protocols differ")


def _add_sample(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument(
        "--n", type=whole_number(1), metavar="N", help="number of images (default: 64; with --given: 8)"
    )
    parser.add_argument(
        "--given",
        metavar="X",
        help="continue images below their first rows, of a model that predicts each pixel from those before it: test, "
        "validation or train of the run, else another set, folder, array or file",
    )
    parser.add_argument("--rows", type=whole_number(0), metavar="K", help="with --given: rows that are kept")
    parser.add_argument(
        "--draws", type=whole_number(1), metavar="D", help="with --given: draws of each image (default: 4)"
    )
    parser.add_argument(
        "--temperature",
        type=temperature,
        default=1.0,
        metavar="T",
        help="scale of the priors' spread (default: 1), or one for each layer, the top first: 1,0.9,0.7",
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="S", help="of all draws (default: 0)")
    parser.add_argument(
        "--recalibrate",
        action="store_true",
        help="recompute batch-norm statistics from samples at this temperature; computed once and kept in RUN",
    )
    parser.add_argument(
        "--out", type=path_ending(".png"), metavar="FILE.png", help="default: RUN/samples.png or RUN/completions.png"
    )


def _add_reconstruct(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    _add_split(parser)
    parser.add_argument(
        "--n", type=whole_number(1), default=32, metavar="N", help="N images, spread evenly over the set (default: 32)"
    )
    parser.add_argument("--out", type=path_ending(".png"), metavar="FILE.png", help="default: RUN/reconstructions.png")


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    _add_split(parser)
    positive = whole_number(1)
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="only N images, spread evenly (default: 100; 10000 of classifiers)"
    )
    parser.add_argument(
        "--importance-samples",
        type=positive,
        metavar="K",
        help="draws of each image, where the run was not evaluated (default: 10)",
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="S", help="of all draws (default: 0)")
    parser.add_argument(
        "--out", type=path_ending(".html", ".htm"), metavar="FILE.html", help="default: RUN/inspection.html"
    )
    parser.add_argument("--no-figures", action="store_true", help="write the page alone, no figures as files")
    parser.add_argument(
        "--estimates", action="store_true", help="compare estimates of a partition function, which takes minutes"
    )


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="S", help="of all draws (default: 0)")
    parser.add_argument(
        "--batch-size", type=whole_number(1), default=100, metavar="B", help="images a pass (default: 100)"
    )


def _add_score(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    _add_split(parser)
    positive = whole_number(1)
    parser.add_argument("--out", type=path_ending(".csv"), metavar="FILE.csv", help="default: RUN/scores.csv")
    parser.add_argument("--top", type=positive, default=20, metavar="N", help="files to show (default: 20)")
    parser.add_argument("--by", metavar="SCORE", help="score that orders the files (default: complexity, or LLR>k)")
    parser.add_argument("--patches", action="store_true", help="also write a row for each patch, FILE-patches.csv")
    parser.add_argument(
        "--llr",
        type=whole_numbers,
        metavar="K,...",
        help="k of each LLR>k (default: 1, all but the top layer, one between)",
    )
    parser.add_argument(
        "--importance-samples", type=positive, default=10, metavar="K", help="draws of each image (default: 10)"
    )
    parser.add_argument(
        "--held-out",
        type=positive,
        default=1000,
        metavar="N",
        help="p-values among N held-out files, spread evenly (default: 1000)",
    )
    parser.add_argument(
        "--calibrate-on",
        type=one_of("test", "validation"),
        default="test",
        metavar="SPLIT",
        help="test (default), or validation, if nothing was chosen on these images",
    )
    _add_measuring(parser)


def _add_encode(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    _add_split(parser)
    parser.add_argument("--out", type=path_ending(".npz"), metavar="FILE.npz", help="default: RUN/latents.npz")
    _add_measuring(parser)


def _add_decode(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument(
        "latents", nargs="?", metavar="FILE.npz", help="what davi encode has written (default: RUN/latents.npz)"
    )
    parser.add_argument("--data", dest="encoded", metavar="FILE.npz", help="the same")
    parser.add_argument(
        "--out",
        type=array_or_folder,
        metavar="FILE.npy|DIR",
        help="an array, or a folder of a PNG file for each image (default: RUN/decoded.npy)",
    )
    parser.add_argument(
        "--batch-size", type=whole_number(1), default=100, metavar="B", help="images a pass (default: 100)"
    )


def _add_study(parser: argparse.ArgumentParser) -> None:
    add_study(parser)
    _add_device(parser)


FORMS = {
    "attentive": "Keras weights of the Deep Attentive VAE's authors (.h5)",
    "nvae": "a checkpoint of NVAE's (.pt)",
    "vdvae": "weights of the Very Deep VAE's (.th)",
    "rbm": "arrays W [V, H], b and c of any restricted Boltzmann machine (.npz)",
}
"""The forms of published weights, and what ``--help`` says about them."""


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("form", type=one_of(*FORMS), metavar="FORM", help="; ".join(map(": ".join, FORMS.items())))
    parser.add_argument("file", metavar="FILE", help="the file")
    parser.add_argument("--run", metavar="DIR", required=True, help="folder of the run that is made, new or empty")
    parser.add_argument("--recipe", metavar="RECIPE", help="take what the file does not tell from this recipe")
    parser.add_argument("--data", metavar="SET", help="set the model is for, or path of a .npy or .npz file")
    parser.add_argument(
        "--shape", type=shape, metavar="C,H,W", help="channels, height and width of the images, for an RBM's file"
    )
    parser.add_argument("--mismatches", action="store_true", help="print everything in the file that does not fit")


_IMAGES = (
    "The images are those of the run; --data.root DIR says where its sets lie now. The other options of the\n"
    "recipe's section data can be overridden in the same way, as --data.OPTION VALUE.\n"
)

VERBS: dict[str, Verb] = {
    "recipes": Verb(
        "list the recipes, or show one of them as YAML",
        _add_recipes,
        (),
        "  davi recipes mnist minutes\n  davi recipes show attentive_mnist > my.yaml",
    ),
    "train": Verb(
        "train the model of a recipe and write a run folder",
        _add_train,
        ("model", "data", "training", "stages"),
        "Any option of the recipe's sections can be overridden as --model.OPTION, --data.OPTION, --training.OPTION\n"
        "or, beginning with the name of a stage, --stages.OPTION (davi recipes show RECIPE shows those in use):\n"
        "  davi train attentive_mnist --model.layers '[4, 8]' --minutes 30 --data.root DIR\n"
        "  davi train halves.yaml --stages.second.steps 9000    (of the stage of that name)\n"
        "  davi train --run runs/attentive_mnist-1 --resume\n"
        "  davi train --from runs/attentive_mnist-1 --data FOLDER --minutes 30",
    ),
    "evaluate": Verb(
        "measure how probable a trained model finds images",
        _add_evaluate,
        ("data",),
        "The numbers are also written to RUN/evaluation.json. An energy's partition function is estimated once, and\n"
        f"again for other --ais-... options; it is kept in RUN/derived.\n{_IMAGES}"
        "  davi evaluate runs/demo --importance-samples 100 --data.root DIR\n"
        "--gap measures the bound for 1, 2, 4, ... K draws, and how much the encoder (amortization gap) and the form\n"
        "of its posteriors (family gap) lose, and writes RUN/gap.json; smaller --gap-... where a model is slow.\n"
        "  davi evaluate runs/demo --gap --gap-images 50 --gap-samples 1000",
    ),
    "compare": Verb(
        "rank evaluated runs, with paired differences over the same images",
        _add_compare,
        (),
        "Runs are ranked among those of the same protocol; differences between protocols are named.\n"
        "  davi compare runs/with runs/without --markdown --out comparison.md",
    ),
    "sample": Verb(
        "draw images from a trained model, or continue given ones",
        _add_sample,
        ("data",),
        "  davi sample runs/demo --temperature 0.8\n"
        "With --given, K rows of each image are kept and the rest is drawn, exactly from p(rest | these rows).\n"
        f"{_IMAGES}  davi sample runs/pixels --given test --rows 14",
    ),
    "reconstruct": Verb(
        "show images beside their reconstructions by a trained model",
        _add_reconstruct,
        ("data",),
        "Shown is, at the posterior means of the latents, the most probable value of each sub-pixel (a channel of a\n"
        "pixel) given those before it; above 256 levels the mean of the heaviest component of its mixture instead.\n"
        f"{_IMAGES}  davi reconstruct runs/demo --split validation",
    ),
    "inspect": Verb(
        "write one page with numbers, curves, pictures and attention maps",
        _add_inspect,
        ("data",),
        "The page is one file without scripts; every figure is also saved as PNG and SVG in RUN/inspection.\n"
        f"{_IMAGES}  davi inspect runs/demo --limit 200",
    ),
    "score": Verb(
        "rank images by how odd they are to a trained model",
        _add_score,
        ("data",),
        "A row for each file (the mean over its patches), the oddest first: bits per dimension, LLR>k of hierarchies,\n"
        "bits minus those of a PNG or WebP file, each with its rank and p-value among held-out images of the run.\n"
        "Of a classifier instead the class of each file, its probability, and log p(y | x) where labels are known.\n"
        f"{_IMAGES}  davi score runs/demo --data FOLDER --out scores.csv --top 20",
    ),
    "encode": Verb(
        "write the latents of images as arrays",
        _add_encode,
        ("data",),
        "Posterior means of all layers, their grids, which units are active, and file names, as a .npz file. Of a\n"
        "flow, the latents of all scales, which davi decode turns into the very images again; of a quantized model,\n"
        "the codes, small integers.\n"
        f"{_IMAGES}  davi encode runs/demo --data FOLDER --out latents.npz",
    ),
    "decode": Verb(
        "make images of latents that davi encode has written",
        _add_decode,
        (),
        "The images are written as an array that --data reads, and the first 64 as a picture beside it; or into a\n"
        "folder, as PNG files. A flow gives back the images that were encoded; any other model its reconstructions.\n"
        "  davi decode runs/demo latents.npz --out images.npy\n  davi decode runs/demo --data codes.npz --out DIR",
    ),
    "import": Verb(
        "import published weights as a run",
        _add_import,
        ("model", "data"),
        "What the file does not tell can be given as --model.OPTION and --data.OPTION.\n"
        "  davi import attentive final_model.h5 --run runs/published\n"
        "  davi import vdvae cifar10-seed1-model-ema.th --recipe very_deep_vae_cifar10 --run runs/published\n"
        "  davi import rbm theirs.npz --run runs/theirs --data binarized_mnist",
    ),
    "study": Verb(
        "run a study of the literature, with its published numbers beside ours",
        _add_study,
        ("data", "training"),
        EXAMPLE,
    ),
}
"""All verbs, in the order in which they are shown."""
