"""A run that begins with the weights of another model: what is taken over, and that no kill loses it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import contract
import pytest
import torch
from killed_runs import CONFIG
from tiny import RECIPE, Logistic, same_files, sets, vae

import davi
from davi import recipes, runs
from davi.data import load
from davi.errors import UserError
from davi.files import read_tensors, write_tensors
from davi.model import Conditional, DataInitialized, Invertible, Model
from davi.runs import checkpoint_folders, load_model
from davi.training import Interrupted, prepare, train
from davi.training.signals import Signals
from davi.training.start import Start, take_over

TINY = [name for name in contract.names(Model) if name in contract.TINY]
FLOWS = [name for name in TINY if issubclass(contract.class_of(name), Invertible)]
"""They have no layer whose outputs are about pixels, and none that only reads them."""
WITH_ENDS = [name for name in TINY if name not in FLOWS]
SEEING = [
    f"causal.blocks.{i}.{layer}"
    for i in range(2)
    for layer in ("content.conv1", "content.conv2", "key_value", "ask.conv1", "ask.conv2", "query")
]
"""Layers within PixelSNAIL that see the image, or coordinates that are repeated for every channel."""
GATED = [f"head.network.{layer}.conv" for layer in ("layers.0.vertical", "layers.0.horizontal", "last")]
"""Those layers of a Gated PixelCNN that is a likelihood."""
ENDS = {
    "attentive_autoregressive_digits_tiny": [*GATED, "preprocess.stem"],
    "attentive_digits_tiny": ["preprocess.stem", "output"],
    "biva_digits_tiny": ["stem", "output"],
    "gated_pixelcnn_digits_tiny": [layer.replace("head.network", "causal") for layer in GATED],
    "hvi_digits_tiny": ["inference.0.hidden.0", "output.last"],
    "iaf_vae_digits_tiny": ["stem.0", "output.0"],
    "ladder_vae_convolutional_digits_tiny": ["up.0.cell.stem", "output"],
    "ladder_vae_digits_tiny": ["up.0.layers.0", "output.linear"],
    "mixture_posterior_digits_tiny": ["inference.0.hidden.0", "output.last"],
    "nvae_autoregressive_digits_tiny": [*GATED, "stem"],
    "nvae_digits_tiny": ["stem", "output"],
    "pixelcnn_digits_tiny": ["causal.first.conv", "causal.last.conv"],
    "pixelcnn_pp_digits_tiny": ["causal.u", "causal.above", "causal.before", "causal.output"],
    "pixelsnail_digits_tiny": ["causal.above", "causal.beside", *SEEING, "causal.output"],
    "pixelvae_2level_digits_tiny": [*GATED, "infer_grid.cell.stem"],
    "pixelvae_digits_tiny": [*GATED, "infer_top.cell.stem"],
    "sylvester_digits_tiny": ["inference.0.encoder.0.conv", "output.last"],
    "vae_convolutional_digits_tiny": ["inference.0.cell.stem", "output.last"],
    "vae_digits_tiny": ["inference.0.hidden.0", "output.last"],
    "vae_lagging_digits_tiny": ["inference.0.hidden.0", "output.last"],
    "very_deep_vae_autoregressive_digits_tiny": [*GATED, "stem"],
    "very_deep_vae_digits_tiny": ["stem", "output"],
    "vlae_digits_tiny": [*GATED, "infer_top.cell.stem"],
    "vq_vae2_digits_tiny": ["autoencoder.encoders.1.halving.0", "autoencoder.decoder.doubling.0"],
    "vq_vae_digits_tiny": ["autoencoder.encoder.halving.0", "autoencoder.decoder.doubling.0"],
}
"""Layers that read the image or give the parameters of its pixels."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def family(name: str, wanted: str) -> str:
    """The override that gives the pixels of a recipe another family."""
    network = "network.likelihood." if any(word in name for word in ("autoregressive", "pixelvae", "vlae")) else ""
    return f"model.likelihood.{network}family={wanted}"


def equal(model: Model, source: Model, names: frozenset[str]) -> bool:
    own, theirs = model.state_dict(), source.state_dict()
    return all(torch.equal(own[name], theirs[name]) for name in names)


@pytest.mark.parametrize("name", TINY)
def test_everything_is_taken_over_for_images_of_the_same_kind(name: str) -> None:
    model, source = davi.build(name), davi.build(name)
    start, lines = take_over(model, source, "runs/a")
    assert lines == ["begins with the weights of runs/a"]
    assert start.kept == set(source.state_dict())
    assert equal(model, source, start.kept)


@pytest.mark.parametrize("name", WITH_ENDS)
def test_only_the_ends_are_drawn_anew_for_other_channels_and_levels(name: str) -> None:
    model = davi.build(name, family(name, "logistic_mixture"), shape=(3, 8, 8), levels=256)
    source, before = davi.build(name), {key: x.clone() for key, x in model.state_dict().items()}
    start, lines = take_over(model, source, "runs/a")
    assert len(lines) == 1
    assert lines[0].endswith(
        f"have 3 channels in place of 1 and 256 levels in place of {source.levels}: {', '.join(ENDS[name])}"
    )
    assert equal(model, source, start.kept)
    parameters = {key for key, _ in model.named_parameters()}
    anew = parameters - start.kept
    assert {key.rpartition(".")[0] for key in anew} == set(ENDS[name])
    assert all(torch.equal(before[key], model.state_dict()[key]) for key in anew)


def test_weights_whose_shape_no_level_changes_stay() -> None:
    """A mixture of logistics speaks of pixels from -1 to 1, however many levels there are between."""
    model, source = (davi.build("nvae_digits_tiny", levels=levels) for levels in (256, 17))
    start, lines = take_over(model, source, "runs/a")
    assert lines == ["begins with the weights of runs/a"]
    assert start.kept == set(source.state_dict())


def test_a_last_layer_of_another_meaning_is_no_less_new_for_having_the_same_shape() -> None:
    """30 logits of a categorical, and ten logistics of a weight, a mean and a scale."""
    name = "vae_digits_tiny"
    categorical = davi.build(name, "model.likelihood.family=categorical", levels=30)
    mixtures = [
        davi.build(name, "model.likelihood.family=logistic_mixture", "model.likelihood.components=10", levels=levels)
        for levels in (17, 30)
    ]
    assert mixtures[0].state_dict().keys() == categorical.state_dict().keys()
    start, lines = take_over(mixtures[0], categorical, "runs/a")
    assert lines[0].endswith("images have 17 levels in place of 30: output.last")
    assert "output.last.weight" not in start.kept
    before = {key: x.clone() for key, x in mixtures[1].state_dict().items()}
    with pytest.raises(
        UserError, match=r"^model: its last layer does not mean the same as in runs/a; .*likelihood.family categ"
    ):
        take_over(mixtures[1], categorical, "runs/a")
    assert all(torch.equal(before[key], x) for key, x in mixtures[1].state_dict().items())


def test_the_network_of_an_autoregressive_likelihood_has_a_last_layer_too() -> None:
    """Its family may change with the images, though not for the same ones; another network is wholly new."""
    name = "nvae_autoregressive_digits_tiny"
    inner = "model.likelihood.network.likelihood"
    source = davi.build(name, f"{inner}.family=categorical", levels=30)
    mixture = (f"{inner}.family=logistic_mixture", f"{inner}.components=10")
    start, lines = take_over(davi.build(name, *mixture, levels=17), source, "runs/a")
    assert lines[0].endswith("images have 17 levels in place of 30: head.network.last.conv")
    assert start.kept == source.state_dict().keys() - {f"head.network.last.conv.{leaf}" for leaf in ("weight", "bias")}
    with pytest.raises(UserError, match=r"^model: its last layer does not mean the same as in runs/a"):
        take_over(davi.build(name, *mixture, levels=30), source, "runs/a")
    other = davi.build(name, "model.likelihood.network={name: pixelcnn, width: 4}", levels=17)
    start, lines = take_over(other, source, "runs/a")
    assert not [key for key in start.kept if key.startswith("head.")]
    assert "model.likelihood.network.name gated_pixelcnn -> pixelcnn" in lines[1]


@pytest.mark.parametrize(
    ("recipe", "overrides", "shape", "words"),
    [
        ("nvae_digits_tiny", (), (1, 8, 8), "model.name: got nvae, expected vae as in runs/a"),
        ("vae_digits_tiny", ("model.hidden=[9,9]",), (1, 8, 8), r"do not fit: got .*hidden \[\d+, \d+\] -> \[9, 9\]"),
        ("vae_digits_tiny", ("model.hidden=[9,9]",), (3, 8, 8), r"do not fit: got .*hidden \[\d+, \d+\] -> \[9, 9\]"),
        ("vae_digits_tiny", (), (1, 8, 9), r"as in runs/a; what differs: images of 1x8x8 -> images of 1x8x9$"),
    ],
)
def test_what_does_not_fit_is_one_line(
    recipe: str, overrides: tuple[str, ...], shape: tuple[int, int, int], words: str
) -> None:
    model = davi.build(recipe, *overrides, shape=shape, levels=17)
    with pytest.raises(UserError, match=words) as caught:
        take_over(model, davi.build("vae_digits_tiny"), "runs/a")
    assert "\n" not in str(caught.value)


def test_options_that_change_no_shape_are_told() -> None:
    model = davi.build("very_deep_vae_digits_tiny", "model.input_mean=0.25")
    _, lines = take_over(model, davi.build("very_deep_vae_digits_tiny"), "runs/a")
    assert lines[1:] == ["options that differ from runs/a: model.input_mean 0.5 -> 0.25"]


@pytest.mark.parametrize("name", WITH_ENDS)
def test_images_shown_before_the_first_step_change_no_weight_that_was_taken_over(name: str) -> None:
    model, source = (davi.build(name, family(name, "bernoulli"), levels=2) for _ in range(2))
    if not isinstance(model, DataInitialized) or not model.images_wanted:
        return
    start, _ = take_over(model, source, "runs/a")
    x = torch.randint(2, (16, *model.shape))
    with torch.no_grad():
        model.train().initialize(x, start.kept)
        assert equal(model, source, frozenset(key for key, _ in source.named_parameters()))
        ends = {f"{end}.{leaf}" for end in ENDS[name] for leaf in ("v", "log_g", "g", "weight", "bias", "b")}
        model.initialize(x, start.kept - ends)
    kept = frozenset(key for key, _ in source.named_parameters() if key not in ends)
    assert equal(model, source, kept)
    own, theirs = dict(model.named_parameters()), dict(source.named_parameters())
    biases = {end: f"{end}.{leaf}" for end in ENDS[name] for leaf in ("bias", "b") if f"{end}.{leaf}" in own}
    changed = {end for end, bias in biases.items() if not torch.equal(own[bias], theirs[bias])}
    expected = {"nvae": [], **dict.fromkeys(("hvi", "mixture_posterior", "vae"), ENDS[name][1:])}
    assert changed == set(expected.get(model.name, ENDS[name]))


@pytest.mark.parametrize("name", FLOWS)
def test_of_a_flow_all_is_drawn_anew_that_has_another_shape(name: str) -> None:
    """For other levels nothing; and images shown before the first step change nothing that was taken over."""
    source = davi.build(name)
    theirs = source.state_dict()
    for shape, levels in ((source.shape, 5), ((3, 8, 8), source.levels)):
        model = davi.build(name, shape=shape, levels=levels)
        own = model.state_dict()
        start, (line,) = take_over(model, source, "runs/a")
        assert start.kept == {key for key in own if key in theirs and own[key].shape == theirs[key].shape}
        assert ("have 3 channels in place of 1" in line) == (len(start.kept) < len(own))
        assert isinstance(model, Invertible)
        model.train().initialize(torch.randint(levels, (16, *shape)), start.kept)
        assert equal(model, source, start.kept)


def begun(source: int = 5) -> tuple[Model, Start]:
    """A model with the weights of one that was trained elsewhere."""
    model, other = vae(), vae()
    with torch.no_grad():
        for x in other.parameters():
            x.add_(torch.randn(x.shape, generator=torch.Generator().manual_seed(source)), alpha=0.01)
    start, _ = take_over(model, other, "runs/a")
    return model, start


def go(run: Path, started: bool, **options: Any) -> list[str]:
    """Train; resumed runs get a model of other weights and are told nothing about where theirs came from."""
    lines: list[str] = []
    model, start = begun() if started else (vae(), None)
    if not started:
        with torch.no_grad():
            for x in model.parameters():
                x.zero_()
    train(model, sets(), CONFIG, run, RECIPE, print_fn=lines.append, start=start, **options)
    return lines


def test_what_a_run_has_begun_with_is_remembered(tmp_path: Path) -> None:
    go(tmp_path / "run", True)
    _, start = begun()
    told = {"started_from": "runs/a", "started_from_sha256": start.sha256}
    assert told.items() <= load_model(tmp_path / "run")[1]["protocol"].items()
    for folder in checkpoint_folders(tmp_path / "run"):
        assert told.items() <= load_model(folder / "average.safetensors")[1]["protocol"].items()
    train(vae(), sets(), CONFIG, tmp_path / "other", RECIPE, print_fn=[].append)
    assert "started_from" not in load_model(tmp_path / "other")[1]["protocol"]
    assert not (tmp_path / "other" / "start.safetensors").exists()
    assert not same_files(tmp_path / "run", tmp_path / "other")


def test_killed_before_the_first_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(tmp_path / "whole", True)

    def killed(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    run = tmp_path / "run"
    monkeypatch.setattr(runs, "write_recipe", killed)  # the weights are there, the recipe is not: not begun
    with pytest.raises(KeyboardInterrupt):
        go(run, True)
    assert [path.name for path in run.iterdir()] == ["start.safetensors"]
    monkeypatch.undo()
    monkeypatch.setattr(prepare, "initialize", killed)
    with pytest.raises(KeyboardInterrupt):
        go(run, True, resume=True)  # the same command once more
    assert {path.name for path in run.iterdir()} == {"start.safetensors", "recipe.yaml"}
    monkeypatch.undo()
    assert go(run, False, resume=True)[0] == f"nothing to resume in {run}: from the beginning"
    assert same_files(tmp_path / "whole", run)
    left = tmp_path / "left"
    left.mkdir()
    shutil.copy(run / "start.safetensors", left)  # killed before its recipe was there, and now without --from
    train(vae(), sets(), CONFIG, left, RECIPE, resume=True, print_fn=[].append)
    assert not (left / "start.safetensors").exists()
    assert "started_from" not in load_model(left)[1]["protocol"]


def test_stopped_and_resumed_it_needs_its_source_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(tmp_path / "whole", True)
    run = tmp_path / "run"
    monkeypatch.setattr(Signals, "__enter__", lambda self: setattr(self, "received", 15) or self)
    for step in (1, 2, 3):
        with pytest.raises(Interrupted) as caught:
            go(run, step == 1, resume=step > 1)
        assert caught.value.step == step
    monkeypatch.undo()
    kept = tmp_path / "kept.safetensors"
    shutil.move(run / "start.safetensors", kept)  # from here on the checkpoints are enough
    go(run, False, resume=True)
    shutil.move(kept, run / "start.safetensors")
    assert same_files(tmp_path / "whole", run)


def test_damaged_first_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    go(run, True)
    shutil.rmtree(run / "checkpoints")
    (run / "model.safetensors").unlink()
    path = run / "start.safetensors"
    tensors, info = read_tensors(path)
    write_tensors(path, tensors, {**info, "anew": 3})
    with pytest.raises(UserError, match=r"does not say where the weights come from"):
        go(run, False, resume=True)
    write_tensors(path, {"a": torch.zeros(1)}, info)
    with pytest.raises(UserError, match=r"got the weights of another model"):
        go(run, False, resume=True)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"not a complete safetensors file"):
        go(run, False, resume=True)


@pytest.mark.parametrize("name", ["iaf_vae_digits_tiny", "nvae_digits_tiny"])
def test_models_that_see_images_first_go_on_where_they_were_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    recipe = recipes.load(name)
    assert recipe.data is not None
    assert recipe.training is not None
    images = load(recipe.data)
    config = replace(CONFIG, steps=3, batch_size=16, objective=recipe.training.objective)
    torch.manual_seed(3)
    source = davi.build(name, shape=(1, 8, 8), levels=2)

    def run(folder: Path, seed: int, resume: bool = False) -> None:
        torch.manual_seed(seed)
        model = davi.build(name)
        start = None if resume else take_over(model, source, "runs/a")[0]
        train(model, images, config, folder, RECIPE, resume=resume, print_fn=lambda line: None, start=start)

    run(tmp_path / "whole", 1)
    monkeypatch.setattr(Signals, "__enter__", lambda self: setattr(self, "received", 15) or self)
    with pytest.raises(Interrupted):
        run(tmp_path / "run", 1)
    monkeypatch.undo()
    run(tmp_path / "run", 2, resume=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


class Classed(Logistic, Conditional):
    """Pixels that depend on their class as well."""

    def __init__(self, shape: tuple[int, int, int], levels: int, config: Logistic.Config, classes: int = 0) -> None:
        super().__init__(shape, levels)
        self.classes = classes
        self.shift = torch.nn.Parameter(torch.randn(max(1, classes), *shape))


def test_what_depends_on_classes_is_taken_over_for_other_levels() -> None:
    model, source = (Classed((1, 2, 2), levels, Logistic.Config(), 5) for levels in (4, 8))
    start, lines = take_over(model, source, "runs/a")
    assert lines == ["begins with the weights of runs/a; drawn anew, since images have 4 levels in place of 8: logits"]
    assert "shift" in start.kept
    assert equal(model, source, start.kept)
