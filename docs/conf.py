"""Settings of the documentation's site: Sphinx reads the pages of this folder and the docstrings of the package.

The site needs no network, neither to be built nor to be read: formulas become MathML, which browsers draw themselves.
"""

from __future__ import annotations

import re
import sys
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import davi  # noqa: E402  # the package beside this folder, installed or not

project = "DAVI"
author = "the DAVI contributors"
version = release = davi.__version__
copyright = author

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"DAVI {release}"
html_static_path = ["_static"]
html_css_files = ["davi.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
# The theme's own fonts are those of the system; nothing else is asked for by a page.
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

nitpicky = True
# Without a network the documentation of other projects is not at hand; type variables and aliases have no page.
_PROJECTS = "argparse collections dataclasses enum io jinja2 markupsafe matplotlib nn np numpy pathlib PIL torch typing"
_NAMES = (
    "Any Array Callable Choose PrintFunction Generator IntEnum "
    "Module NDArray NamedTuple NetworkSection Parameter Path Progress Shape Tensor ABC TypeAliasForwardRef Variance "
    "ConstantRateSection PosteriorFlowSection PriorSection QuantizerSection Side optional"
)
nitpick_ignore_regex = [
    (r"py:.*", rf"({'|'.join(_PROJECTS.split())})(\..*)?"),
    (r"py:.*", rf"({'|'.join(_NAMES.split())}|.*\.T|.*\.State|tuple\[.*|Literal\[.*|.*Annotated\[.*)"),
]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases = {
    name: name
    for name in ("NetworkSection", "ConstantRateSection", "PosteriorFlowSection", "PriorSection", "QuantizerSection")
}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_rtype = False


# What docutils does not know, or sets in another way than TeX, and how to say the same.
_TEX = (
    (re.compile(r"\\dots(?![a-zA-Z])"), r"\\ldots"),
    (re.compile(r"\\([bB]igg?)(?![a-zA-Z])"), r"\\\1l"),
    # The index of a letter with an accent would go below the letter.
    (re.compile(r"(\\(?:hat|bar|tilde)\s*(?:\{[^{}]*\}|[a-zA-Z]))(?=[_^])"), r"\1{}"),
)
_FUNCTION = re.compile(r"<mo>&ApplyFunction;</mo>(?!\s*<mo[^>]*>[(\[])")
"""A function's name before its argument, which browsers set without a space between."""


def _formula(node: nodes.math | nodes.math_block) -> str:
    tex = node.astext()
    for pattern, same in _TEX:
        tex = pattern.sub(same, tex)
    try:
        found = tex2mathml(tex, as_block=isinstance(node, nodes.math_block))
    except MathError as error:
        logging.getLogger(__name__).warning("formula %r: %s", node.astext(), error, location=node)
        return f"<code>{escape(node.astext())}</code>"
    return _FUNCTION.sub('<mspace width="0.17em"></mspace>', found)


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(_formula(node))
    raise nodes.SkipNode


def _display(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="formula" tabindex="0">{_formula(node)}</div>\n')
    raise nodes.SkipNode


def _prose_stays(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Undo napoleon's reading of what stands before a colon in the first line as a type: our types are annotations."""
    types = [line for line in lines if line.startswith(":type: ")]
    if what in ("attribute", "data", "property") and types:
        lines.remove(types[0])
        lines[0] = f"{types[0].removeprefix(':type: ')}: {lines[0]}"


def _short_arrays(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Write an array's type as the sources do, without the dimensions that numpy leaves open."""
    pattern = r"ndarray\[tuple\[Any, \.\.\.\], dtype\[(\w+)\]\]"
    return (
        re.sub(pattern, r"NDArray[\1]", signature) if signature else signature,
        re.sub(pattern, r"NDArray[\1]", returns) if returns else returns,
    )


def setup(app: Sphinx) -> dict[str, Any]:
    """Register what this site adds to Sphinx."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    app.connect("autodoc-process-docstring", _prose_stays, priority=900)
    app.connect("autodoc-process-signature", _short_arrays)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
