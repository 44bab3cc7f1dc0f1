"""The table of `--mode compile`, as rows of text and as HTML: the report of a folder with a compile.json shows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath
from markupsafe import Markup

from data_pipelines.files import parse_json
from irm_jax.errors import UserError

FILE = "compile.json"
HEAD = (
    "step", "topology", "chips", "peak", "limit", "FLOPs", "collectives", "compute", "memory", "network", "bound",
    "compiled in",
)  # fmt: skip
PREDICTION = (
    "A prediction from published peaks, nothing was run: each time is the least that the chip's products, memory or "
    "network would take at full rate. FLOPs are of all chips, counted in the program (products only, recomputed ones "
    "too); collectives are bytes per chip, times the trips of the loops around them."
)


class CompileTableError(UserError):
    """Reports a compile.json that cannot be read; the message names the file and the cure."""


def read(workdir: epath.Path) -> dict[str, Any] | None:
    """Returns the table in the folder of a run, None if there is none. Raises CompileTableError if it is damaged."""
    path = workdir / FILE
    if not path.exists():
        return None
    try:
        table = parse_json(path.read_bytes())
        rows(table)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CompileTableError(f"{path} is damaged ({error}): delete it, or run --mode compile again") from error
    return dict(table)


def rows(table: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Returns one row of text per step, in the order of HEAD; `table` is the content of compile.json."""
    return [_row(step, entry) for step, entry in table.items()]


def html(table: Mapping[str, Mapping[str, Any]]) -> Markup:
    """Returns the table, and a paragraph that says what its predictions are worth."""

    def joined(form: str, words: Iterable[str]) -> Markup:
        return Markup("").join(Markup(form).format(word) for word in words)

    body = Markup("").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(first, joined("<td>{}</td>", rest))
        for first, *rest in rows(table)
    )
    return Markup(
        '<div class="scroll" role="region" aria-label="Compiled programs" tabindex="0"><table><thead><tr>{}</tr>'
        "</thead><tbody>{}</tbody></table></div><p>{}</p>"
    ).format(joined('<th scope="col">{}</th>', HEAD), body, PREDICTION)


def _row(step: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    times = [_time(entry["roofline_s"][term]) for term in ("compute", "memory", "network")]
    moved = ", ".join(f"{kind} {_size(size)}" for kind, size in entry["collective_bytes"].items()) or "none"
    if entry["roofline_s"]["memory"] is None:
        moved = "–"  # one of its programs did not compile: what it moves is not known
    return (
        step, entry["topology"], str(entry["devices"]), _size(entry["peak_bytes"]), _size(entry["limit_bytes"]),
        f"{entry['flops']:.3g}", moved, *times, entry["bound"], f"{entry['compile_s']:.0f} s",
    )  # fmt: skip


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _size(count: float) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"
