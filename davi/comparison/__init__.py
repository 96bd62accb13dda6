"""Comparison of runs: numbers ranked within one protocol, and paired differences over the same images.

:func:`read` takes the evaluation of a run, :func:`compare` makes one record of several, and :func:`to_terminal` and
:func:`to_markdown` make tables of it.
"""

from davi.comparison.ranking import CONDITIONS, compare, paired
from davi.comparison.reading import Entry, pace, read, trained_on_these
from davi.comparison.tables import to_markdown, to_terminal

__all__ = ["CONDITIONS", "Entry", "compare", "pace", "paired", "read", "to_markdown", "to_terminal", "trained_on_these"]
