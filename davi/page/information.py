"""The section about mutual information: what latents say about images."""

from __future__ import annotations

from davi.evaluation.mutual_information import INFORMATION_OF_MODEL, INFORMATION_OF_TOP, RATE_OF_TOP
from davi.page.blocks import Block, Prose, Section, Table
from davi.page.contents import Contents
from davi.report import in_words

_NAMES = (INFORMATION_OF_MODEL, INFORMATION_OF_TOP, RATE_OF_TOP)

_READING = (
    "Of the model: how well the posterior finds the latents from which the model drew an image. Of the posterior: how "
    "well the latents of an image tell which image it is. Near zero the latents are not used, whatever they cost. "
    "A lower bound below zero says nothing; it is common where samples do not look like the data. A number at its cap "
    "says that all of these images can be told apart, and no more."
)

_UNKNOWN = "Left out: an older version has measured this model; davi evaluate measures it anew."


def information(contents: Contents, _: int) -> Section:
    """The three measures, and those that the model does not have."""
    result = contents.result
    assert result is not None
    rows = tuple(
        (measure.name, in_words(measure), measure.rule) for measure in result.measures if measure.name in _NAMES
    )
    left_out = tuple(f"{one.name} is left out: {one.reason}." for one in result.left_out if one.name in _NAMES)
    blocks: list[Block] = [Table("Nats per image", ("", "value", "what it is"), rows), Prose(_READING)] if rows else []
    blocks += [Prose(sentence) for sentence in left_out or ((_UNKNOWN,) if not rows else ())]
    return Section("information", "Mutual information", tuple(blocks))
