"""Builds the documentation: `python -m sphinx -W -b html docs docs/_build` (extra `docs`)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

import api_pages  # noqa: E402

from irm_jax.config import key_table  # noqa: E402
from irm_jax.evaluation import protocols  # noqa: E402

project = "irm_jax"
author = copyright = "The irm_jax authors"
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "search.md"]
smartquotes = False
add_module_names = False
# Links to files beside the site, which tests/test_documents.py checks; names that several modules have.
suppress_warnings = ["myst.xref_missing", "ref.python"]
html_theme = "furo"
html_title = "irm_jax"
html_copy_source = html_use_index = html_domain_indices = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"source_edit_link": "", "top_of_page_buttons": []}
pygments_style, pygments_dark_style = "friendly", "monokai"
maximum_signature_line_length = 88


class Keys(SphinxDirective):
    """`{keys}`: every configuration key with its type, default and meaning, one section per table."""

    def run(self) -> list[nodes.Node]:
        tables: dict[str, list[key_table.Key]] = {}
        for key in key_table.described():
            tables.setdefault(key.name.partition(".")[0] if "." in key.name else "", []).append(key)
        made: list[nodes.Node] = []
        for table, keys in tables.items():
            section = nodes.section(ids=[f"keys-{table or 'run'}"])
            section += nodes.title(text=f"config.{table}" if table else "config")
            rows = [
                [_code(key.name), nodes.paragraph(text=key.type), _code(key.default), nodes.paragraph(text=key.about)]
                for key in keys
            ]
            section += _table(["key", "type", "default", "meaning"], rows, [32, 8, 16, 44])
            made.append(section)
        return made


class Protocols(SphinxDirective):
    """`{protocols}`: every protocol with its rule in words."""

    def run(self) -> list[nodes.Node]:
        rows = [
            [_code(name), nodes.paragraph(text=protocol.description)] for name, protocol in protocols.PROTOCOLS.items()
        ]
        return [_table(["protocol", "rule"], rows, [30, 70])]


def _code(text: str) -> nodes.paragraph:
    return nodes.paragraph("", "", nodes.literal(text=text))


def _table(head: list[str], rows: list[list[nodes.Node]], widths: list[int]) -> nodes.table:
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=width) for width in widths]
    top = nodes.row()
    top += [nodes.entry("", nodes.paragraph(text=text)) for text in head]
    group += nodes.thead("", top)
    body = nodes.tbody()
    for row in rows:
        line = nodes.row()
        line += [nodes.entry("", cell) for cell in row]
        body += line
    group += body
    return nodes.table("", group, classes=["keys"])


def write_pages(app: Sphinx) -> None:
    """Writes the API reference, and docs/search.md under another name: Sphinx has a page of its own called search."""
    api_pages.write(ROOT, HERE / "api")
    text = re.sub(r"\]\((\w+\.(?:md|svg|jpg))", r"](../\1", (HERE / "search.md").read_text("utf-8"))
    page = HERE / "api" / "search.md"
    if not page.exists() or page.read_text("utf-8") != text:
        page.write_text(text, "utf-8")


def lead_to_search(app: Sphinx, name: str, source: list[str]) -> None:
    """Leads links of other pages there."""
    source[0] = source[0].replace("](search.md", "](api/search.md")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("keys", Keys)
    app.add_directive("protocols", Protocols)
    app.connect("builder-inited", write_pages)
    app.connect("source-read", lead_to_search)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
