"""Scores of odd images: each against an independent oracle."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import Generator, Tensor
from toys.belief_net import BeliefNet
from toys.boltzmann import Boltzmann

import davi
from davi.data import DataConfig, Images, load
from davi.distributions import Latent
from davi.errors import UserError
from davi.evaluation import evaluate
from davi.evaluation.conformal import conformal
from davi.evaluation.scores import bound_above, compressed, measure, ratios, scores_of
from davi.evidence import Kind
from davi.model import Hierarchy, Normalized, Partition
from davi.scoring import held_out, patches_csv, score, to_csv, to_terminal
from davi.scoring.result import Files


def hierarchy(name: str) -> Hierarchy:
    torch.manual_seed(3)
    model = davi.build(name).eval()
    assert isinstance(model, Hierarchy)
    for parameter in model.parameters():  # or else a fresh model's posteriors are its priors
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def digits(n: int) -> Images:
    return load(DataConfig(set="digits")).test.subset(slice(n))


def bits(n: int) -> Images:
    return load(DataConfig(set="digits", binarization="threshold")).test.subset(slice(n))


def net() -> BeliefNet:
    return BeliefNet((1, 8, 8), 2, BeliefNet.Config())


# p-values


def test_p_values_by_hand() -> None:
    held = np.array([1.0, 2.0, 2.0, 5.0])
    found = conformal(np.array([0.0, 2.0, 5.0, 6.0]), held)
    assert found.ranks.tolist() == [5, 4, 2, 1]
    assert found.p.tolist() == [1.0, 0.8, 0.4, 0.2]
    both = conformal(np.array([0.0, 1.0, 2.0, 6.0]), held, two_sided=True)
    # at most as high: 0, 1, 3, 4; at least as high: 4, 4, 3, 0
    assert both.ranks.tolist() == [1, 2, 4, 1]
    assert both.p.tolist() == [0.4, 0.8, 1.0, 0.4]


def test_an_image_is_not_compared_with_itself() -> None:
    held = np.array([1.0, 2.0, 3.0])
    found = conformal(np.array([3.0, 3.0]), held, same=[[2], []])
    assert found.p.tolist() == [1 / 3, 2 / 4]
    assert np.isnan(conformal(np.array([1.0]), np.array([1.0]), same=[[0]]).p[0])


def test_p_values_of_the_same_distribution_are_valid() -> None:
    source = np.random.default_rng(0)
    for two_sided in (False, True):
        p = np.array([conformal(source.normal(size=1), source.normal(size=19), two_sided).p[0] for _ in range(4000)])
        for level in (0.05, 0.1, 0.5):
            assert (p <= level).mean() <= level + 4 * math.sqrt(level * (1 - level) / len(p))


@pytest.mark.parametrize(
    ("values", "same"), [([math.nan], None), ([math.inf], None), ([1.0], [])], ids=["nan", "inf", "same"]
)
def test_values_without_a_p_value(values: list[float], same: list[list[int]] | None) -> None:
    with pytest.raises(ValueError, match="expected"):
        conformal(np.array(values), np.array([1.0]), same=same)


# Likelihood ratios

RECIPES = ("attentive_digits_tiny", "biva_digits_tiny", "iaf_vae_digits_tiny")


def by_hand(model: Hierarchy, x: Tensor, k: int, generator: Generator) -> Tensor:
    """log p(x | z) + sum over the kept layers of log p(z) - log q(z), at one draw, written out once more."""
    kept, total = model.num_layers - k, torch.zeros(len(x), dtype=torch.float64)

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        nonlocal total
        assert posterior is not None
        if prior is None:
            return posterior.sample(generator)
        if layer >= kept:
            return prior.expand(len(x)).sample(generator)
        z = posterior.sample(generator)
        total = total + prior.expand(len(x)).log_prob(z).double() - posterior.log_prob(z).double()
        return z

    with torch.no_grad():
        pixels = model.top_down(choose, model.encode(x))
        return total + pixels.log_prob(x).double()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("k", [0, 1, 2])
def test_the_bound_without_the_finest_layers_is_a_walk(recipe: str, k: int) -> None:
    model, x = hierarchy(recipe), digits(3).pixels
    generator = Generator().manual_seed(5)
    draws = torch.stack([by_hand(model, x, k, generator) for _ in range(4)])
    want = torch.logsumexp(draws, 0) - math.log(4)
    found = bound_above(model, x, k, 4, Generator().manual_seed(5), chunk=3)
    assert torch.allclose(found, want, atol=1e-4)


@pytest.mark.parametrize("k", [0, 1])
def test_its_weights_sum_to_one_over_all_images(k: int) -> None:
    """The mean weight of an image is p(x), whatever k: over all 16 images of four pixels that sums to one."""
    model = tiny.vae(size=2).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = torch.tensor(list(product((0, 1), repeat=4)), dtype=torch.uint8).view(16, 1, 2, 2)
    bounds = bound_above(model, x, k, 2000, Generator().manual_seed(1), chunk=3200)
    assert bounds.exp().sum().item() == pytest.approx(1, abs=0.02)


def test_the_ratio_is_the_difference_of_the_bounds() -> None:
    model, images = hierarchy("attentive_digits_tiny"), digits(5)
    found = measure(model, images, (1, 2), 3, 2, 7)
    for k in (1, 2):
        generator = Generator().manual_seed(7)
        above = torch.cat([bound_above(model, x, k, 3, generator, 2) for x in images.pixels.split(2)])
        ratio = -above.numpy() / (64 * math.log(2)) - found["bits_per_dim"]
        assert np.allclose(found[f"llr_{k}"], ratio)


@pytest.mark.parametrize("samples", [1, 3])
def test_the_raw_score_is_that_of_evaluate(samples: int) -> None:
    model, images = hierarchy("attentive_digits_tiny"), digits(7)
    raw = measure(model, images, (), samples, 3, 2)["bits_per_dim"]
    bound = evaluate(model, images, samples, 3, 2).bound
    assert np.array_equal(raw, -bound / (64 * math.log(2)))


def test_which_ratios_there_are() -> None:
    model, images = hierarchy("biva_digits_tiny"), digits(2)
    assert ratios(model) == (1, (1 + model.num_layers - 1) // 2, model.num_layers - 1)
    for k in (0, model.num_layers):
        with pytest.raises(UserError, match=rf"^llr: got k = {k}, expected 1 to {model.num_layers - 1}$"):
            scores_of(model, images, (k,))
    exact = net()
    assert ratios(exact) == ()
    assert [each.name for each in scores_of(exact, bits(1), ())] == ["bits_per_dim", "complexity"]
    with pytest.raises(UserError, match="needs a model with two layers"):
        scores_of(exact, bits(1), (1,))


def test_an_exact_model_has_raw_and_complexity_scores() -> None:
    exact, images = net(), bits(4)
    found = measure(exact, images, samples=5)
    with torch.no_grad():
        want = -exact.evidence(images.pixels).log_px.double().numpy() / (64 * math.log(2))
    assert np.allclose(found["bits_per_dim"], want)
    assert np.allclose(found["complexity"], want - compressed(images) / 64)


def test_an_estimated_model_is_asked_once() -> None:
    model = Normalized(Boltzmann((1, 8, 8), 2, Boltzmann.Config()), Partition(40.0, Kind.ESTIMATE))
    images = bits(3)
    with torch.no_grad():
        want = (model.energy.free_energy(images.pixels).double().numpy() + 40) / (64 * math.log(2))
    assert np.allclose(measure(model, images, samples=5)["bits_per_dim"], want, rtol=1e-5)


# Complexity


@pytest.mark.parametrize(("shape", "levels"), [((1, 9, 7), 2), ((1, 9, 7), 256), ((3, 9, 7), 256), ((1, 9, 7), 65536)])
def test_sizes_of_files(shape: tuple[int, int, int], levels: int) -> None:
    kind = torch.uint8 if levels <= 256 else torch.int32
    pixels = torch.randint(levels, (4, *shape), generator=Generator().manual_seed(0)).to(kind)
    pixels[0] = 0
    want = []
    for values in pixels.numpy():
        if shape[0] == 3:
            image = Image.fromarray(values.transpose(1, 2, 0))
        else:
            image = Image.fromarray(values[0].astype({2: bool, 256: np.uint8, 65536: np.uint16}[levels]))
        sizes = []
        for form, options in (("PNG", {"optimize": True}), ("WEBP", {"lossless": True, "quality": 100, "method": 6})):
            file = io.BytesIO()
            if form == "PNG" or levels <= 256:
                (image if form == "PNG" else image.convert("RGB")).save(file, form, **options)
                sizes.append(8 * len(file.getvalue()))
        want.append(min(sizes))
    assert compressed(Images(pixels, levels, "x")).tolist() == want


def test_what_no_format_holds_has_no_such_score() -> None:
    images = Images(torch.zeros(1, 2, 4, 4, dtype=torch.int32), 1000, "odd")
    assert [each.name for each in scores_of(hierarchy("attentive_digits_tiny"), images, ())] == ["bits_per_dim"]
    with pytest.raises(ValueError, match="neither PNG nor WebP"):
        compressed(images)


# Files


def cut(n: int, groups: list[int] | None = None, files: tuple[str, ...] = ()) -> Images:
    images = load(DataConfig(set="digits")).train
    known = None if groups is None else torch.tensor(groups)
    return Images(images.pixels[:n], images.levels, "cut", groups=known, files=files)


def test_patches_count_for_their_file() -> None:
    names = ("b", "b", "a", "c", "a")
    images = cut(5, [7, 7, 2, 9, 2], names)
    files = Files.of(images)
    assert files.names == ("b", "a", "c")  # as they come
    assert files.counts.tolist() == [2, 2, 1]
    assert files.mean(np.array([1.0, 3.0, 10.0, 5.0, 20.0])).tolist() == [2.0, 15.0, 5.0]
    assert Files.of(cut(2)).names == ("cut/0", "cut/1")


def test_the_table_has_a_row_for_each_file() -> None:
    model = hierarchy("attentive_digits_tiny")
    names = ("=cmd", "=cmd", "a,b", "new\nline", "a,b", "x" * 80)
    images, test = cut(6, [1, 1, 2, 3, 2, 4], names), load(DataConfig(set="digits")).test
    known = held_out(model, test, samples=2, limit=30)
    found = score(model, images, known, samples=2)
    assert known.words == "30 of 397 files of digits/test"
    lines = to_csv(found, "llr_1").split("\n", 1)
    columns = lines[0].split(",")
    assert columns[:5] == ["file", "images", "bits_per_dim", "bits_per_dim_rank", "bits_per_dim_p"]
    rows = list(csv.DictReader(io.StringIO("\n".join(lines))))
    assert {row["file"]: row["images"] for row in rows} == {"./=cmd": "2", "a,b": "2", "new\nline": "1", "x" * 80: "1"}
    order = [float(row["llr_1"]) for row in rows]
    assert order == sorted(order, reverse=True)
    for name, high_only in (("bits_per_dim", False), ("llr_1", True), ("complexity", True)):
        for row in rows:
            file = ["./=cmd", "a,b", "new\nline", "x" * 80].index(row["file"])
            value = found.patches[name][[[0, 1], [2, 4], [3], [5]][file]].mean()
            high, low = (known.values[name] >= value).sum(), (known.values[name] <= value).sum()
            rank = 1 + (high if high_only else min(high, low))
            assert (float(row[name]), int(row[f"{name}_rank"])) == (pytest.approx(value, abs=1e-6), rank)
            assert float(row[f"{name}_p"]) == pytest.approx(min(1, (1 if high_only else 2) * rank / 31), rel=1e-5)
    each = list(csv.DictReader(io.StringIO(patches_csv(found))))
    assert [(row["file"], row["patch"]) for row in each][:5] == [
        *(("./=cmd", "0"), ("./=cmd", "1"), ("a,b", "0"), ("new\nline", "0"), ("a,b", "1"))
    ]
    shown = to_terminal(found, "llr_1", 4)
    assert "new?line" in shown
    assert "..." + "x" * 41 in shown


def test_a_held_out_file_is_ranked_among_the_others() -> None:
    model, images = hierarchy("attentive_digits_tiny"), digits(9)
    found = score(model, images, held_out(model, images))
    for name, column in found.columns.items():
        assert column.ranked is not None
        # of nine different images each is compared with eight: the ranks among nine, if there are no ties
        values = column.values
        ranks = np.array([1 + (np.delete(values, i) >= values[i]).sum() for i in range(9)])
        if not column.score.two_sided:
            assert column.ranked.ranks.tolist() == ranks.tolist(), name
            assert np.allclose(column.ranked.p, ranks / 9)


def test_held_out_files_are_scored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = hierarchy("attentive_digits_tiny"), digits(5)
    measured = list[int]()

    def counted(model: Any, images: Images, *rest: Any) -> Any:
        measured.append(len(images))
        return measure(model, images, *rest)

    monkeypatch.setattr("davi.scoring.result.measure", counted)

    def values(images: Images = images, dropped: tuple[int, ...] = (1,), samples: int = 2, seed: int = 0) -> bool:
        measured.clear()
        found = held_out(model, images, dropped, samples, 100, seed, folder=tmp_path)
        anew = bool(measured)
        want = held_out(model, images, dropped, samples, 100, seed).values
        assert found.values.keys() == want.keys()
        assert all(np.array_equal(found.values[name], want[name]) for name in want)
        return anew

    assert (values(), values()) == (True, False)
    for other in ({"seed": 1}, {"samples": 3}, {"dropped": (2,)}, {"images": digits(4)}):
        assert (values(**other), values(**other)) == (True, False), other
    turned = dataclasses.replace(images, pixels=images.pixels.flip(3), sha256=None)
    assert values(turned)
    next(model.parameters()).data += 0.1
    assert (values(turned), values(turned)) == (True, False)
    path = tmp_path / "derived" / "calibration.safetensors"
    for damaged in (path.read_bytes()[:-3], b""):
        path.write_bytes(damaged)
        assert (values(turned), values(turned)) == (True, False)
    shutil.rmtree(tmp_path / "derived")
    (tmp_path / "derived").write_text("nothing can be kept here")
    assert values(turned)
    assert values(turned)


def test_what_is_common_among_held_out_files_is_not_odd() -> None:
    model, images = hierarchy("attentive_digits_tiny"), digits(4)
    held = images.subset(torch.tensor([0, 0, 0, 0, 1, 2]))
    found = score(model, images.subset(torch.tensor([0, 0, 3])), held_out(model, held, samples=2), samples=2)
    files, values = found.files, found.calibration.values if found.calibration else {}
    for name, column in found.columns.items():
        if not column.score.two_sided:
            for i, others in enumerate(([1, 2, 3, 4, 5], [0, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])):
                rank = 1 + (values[name][others] >= column.values[i]).sum()
                assert column.ranked is not None
                assert column.ranked.p[i] == pytest.approx(rank / (len(others) + 1)), (name, files.names[i])


def test_a_ratio_that_is_asked_for_twice_is_one() -> None:
    model, images = hierarchy("attentive_digits_tiny"), digits(3)
    assert list(measure(model, images, (2, 1, 2))) == ["bits_per_dim", "llr_2", "llr_1", "complexity"]
    assert [each.name for each in scores_of(model, images, (1, 1))] == ["bits_per_dim", "llr_1", "complexity"]


def test_without_held_out_images_there_are_values_alone() -> None:
    found = score(hierarchy("attentive_digits_tiny"), digits(3))
    assert all(column.ranked is None for column in found.columns.values())
    row = to_csv(found, "bits_per_dim").splitlines()[1].split(",")
    assert row[3:5] == ["", ""]


def test_calibration_takes_whole_files() -> None:
    model = hierarchy("attentive_digits_tiny")
    images = cut(12, [0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 4, 4])
    known = held_out(model, images, limit=2)
    assert known.words == "2 of 5 files of cut"
    counts = {0: 3, 1: 2, 2: 1, 3: 4, 4: 2}
    assert known.files.counts.tolist() == [counts[int(name.rpartition("/")[2])] for name in known.files.names]


def test_an_image_of_which_the_model_computes_nothing_is_named() -> None:
    model = hierarchy("attentive_digits_tiny")
    for parameter in model.parameters():
        parameter.data.fill_(math.nan)
    with pytest.raises(UserError, match=r"image 0 has the bits_per_dim nan \(2 of 2\), expected finite numbers"):
        measure(model, digits(2))
