"""Docstrings as reStructuredText: this project writes them in plain text with `code` in single backticks.

A block of lines is a paragraph, a list (`* item`), named entries (`name: text`, as below "Args:"), or, where it is
indented after an empty line, code. Nothing else is markup, so that no docstring can break the build.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_ENTRY = re.compile(r"^(?:\* |- )?(?P<name>\*{0,2}\w[\w.,* ]{0,60}): +(?P<text>\S.*)$")
_ITEM = re.compile(r"^[*-] +(?P<text>.*)$")


def to_rst(lines: list[str]) -> list[str]:
    """Returns the lines of a docstring as reStructuredText."""
    text = "\n".join(lines).expandtabs().strip("\n")
    made: list[str] = []
    for block in re.split(r"\n\s*\n", text):
        made += [*_block(block.split("\n")), ""]
    return made


def _block(lines: list[str]) -> Iterator[str]:
    depths = [len(line) - len(line.lstrip()) for line in lines]
    head = len(lines) > 1 and lines[0].rstrip().endswith(":") and min(depths[1:]) > depths[0]
    if head:
        yield from (f"**{_plain(lines[0].strip().rstrip(':'))}**", "")
        lines = lines[1:]
    elif depths[0] >= 2:
        yield from ("::", "", *(f"    {line}" for line in lines))
        return
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    joined: list[str] = []
    for line in lines:
        deeper = len(line) - len(line.lstrip()) > margin
        starts = not joined or (not deeper and (_ITEM.match(line.strip()) or _ENTRY.match(line.strip())))
        if starts:
            joined.append(line.strip())
        else:
            joined[-1] += f" {line.strip()}"
    for item in joined:
        entry, bullet = _ENTRY.match(item), _ITEM.match(item)
        if entry and (head or len(joined) > 1):
            yield f"* **{_plain(entry['name'])}**: {_inline(entry['text'])}"
        elif bullet:
            yield f"* {_inline(bullet['text'])}"
        else:
            yield from (*([""] if len(joined) > 1 else []), _inline(item), "")


def _inline(text: str) -> str:
    """Text with its code spans as literals, and everything else that reStructuredText would read as markup escaped."""
    parts = re.split(r"(``[^`]+``|`[^`]+`)", text)
    return "".join(
        f"``{part.strip('`').strip()}``\\ " if part.startswith("`") and len(part) > 2 else _plain(part)
        for part in parts
    )


def _plain(text: str) -> str:
    return re.sub(r"([\\*_|`\[\]<>])", r"\\\1", text)
