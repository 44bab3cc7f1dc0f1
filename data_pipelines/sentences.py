"""Writes sentences of the attributes of a table of own pictures, by a language model or by templates.

    python -m data_pipelines.sentences --table crops.csv                                          # templates
    python -m data_pipelines.sentences --table crops.csv --llm http://localhost:8000/v1 --model NAME

The result is the same table with the columns `instruction` (sentences, separated by |) and `instruction_by`, which
task li reads (docs/own_data.md).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_pipelines import commands
from data_pipelines.errors import DatasetError
from data_pipelines.files import check_writable, write_atomically
from data_pipelines.own import language_model
from data_pipelines.own.language_model import Asking, Attributes, Wish
from data_pipelines.sources import table, table_files
from data_pipelines.sources.table import Row

TEMPLATE = "template"
_PROGRESS_SECONDS = 5.0

Sentences = dict[Attributes, dict[int, tuple[str, str]]]
"""Attributes -> number -> (sentence, who wrote it)."""


def write(source: Path, target: Path, count: int, asking: Asking | None = None) -> str:
    """Writes the table `target`: `source` with sentences of each row's attributes; returns what was done in words.

    Rows of equal attributes have the same sentences.

    Args:
      source: a table (see `sources.table_files`).
      target: a .csv or .jsonl file.
      count: sentences for each set of attributes.
      asking: the language model; None has all of them written by templates.

    Raises:
      DatasetError: no row has attributes, or no template knows them.
      LanguageModelError, NoAnswer: see `language_model.ask`.
    """
    if target.resolve() == source.resolve():
        raise DatasetError(f"--out {target} is the table itself: choose another file")
    if target.suffix.lower() not in (".csv", ".jsonl"):
        raise DatasetError(f"--out {target} must end in .csv or .jsonl")
    check_writable(target)
    cells = table_files.read(source)
    rows = table.rows_of(cells)
    sets: dict[Attributes, Row] = {}
    for row in rows:
        if row.attributes:
            sets.setdefault(row.attributes, row)
    if not sets:
        raise DatasetError(f"{source}: no row has attributes to make sentences of (column attributes)")
    written = {attributes: _by_templates(row, count) for attributes, row in sets.items()}
    words = f"{len(rows):,} rows, {len(sets):,} sets of attributes"
    if asking is not None:
        words += f"; {_ask(asking, target, written, count)}"
    content = _table(cells, rows, written, target.suffix.lower())
    write_atomically(target, content)
    return f"{words}: {target}"


def answers_file(target: Path) -> Path:
    """Returns where the answers for a table are kept."""
    return target.with_name(f"{target.name}.answers.jsonl")


def _by_templates(row: Row, count: int) -> dict[int, tuple[str, str]]:
    return dict(enumerate((text, TEMPLATE) for text in table.template_sentences(row, count, repr(row.attributes))))


def _ask(asking: Asking, target: Path, written: Sentences, count: int) -> str:
    """Replaces sentences of templates by the model's, where these are right; returns counts in words."""
    wishes = [Wish(attributes, number, count) for attributes in written for number in range(count)]
    values: dict[str, set[str]] = {}
    for attributes in written:
        for slot, value in attributes:
            values.setdefault(slot, set()).add(value)
    tally = {"taken": 0, "again": 0, TEMPLATE: 0}
    with language_model.kept_answers(answers_file(target)) as answers, _progress(len(wishes)) as advance:

        def done(wish: Wish, sentence: str | None, needed: int) -> None:
            tally["again"] += needed - 1
            if sentence is None:
                tally[TEMPLATE] += 1
            else:
                tally["taken"] += 1
                written[wish.attributes][wish.number] = (sentence, asking.model)
            advance()

        language_model.ask(asking, wishes, {slot: sorted(own) for slot, own in values.items()}, answers, done)
    return (
        f"{tally['taken']:,} sentences by {asking.model}, {tally[TEMPLATE]:,} by templates (after {asking.tries} "
        f"answers that say something else); asked again {tally['again']:,} times; answers in {answers_file(target)}"
    )


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """Yields what counts a sentence: a live line on a terminal, a log line every few seconds elsewhere."""
    console = Console(stderr=True)
    start = last = time.monotonic()
    finished = 0
    columns = (TextColumn("sentences"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)

        def advance() -> None:
            nonlocal finished, last
            finished += 1
            bar.advance(task)
            now = time.monotonic()
            if not console.is_terminal and (finished == total or now - last >= _PROGRESS_SECONDS):
                last = now
                left = (total - finished) * (now - start) / finished
                logging.info("%d of %d sentences, %.0f s left", finished, total, left)

        yield advance


def _table(cells: Sequence[table_files.Cells], rows: Sequence[Row], written: Sentences, suffix: str) -> str:
    lines: list[dict[str, Any]] = []
    for (_, values), row in zip(cells, rows, strict=True):
        own = {name: value for name, value in values.items() if name}
        if row.attributes:
            sentences = dict.fromkeys(written[row.attributes][n] for n in sorted(written[row.attributes]))
            own["attributes"] = "; ".join(f"{slot}={value}" for slot, value in row.attributes)
            own["instruction"] = "|".join(dict.fromkeys(text for text, _ in sentences))
            own["instruction_by"] = ", ".join(dict.fromkeys(by for _, by in sentences))
        lines.append(own)
    if suffix == ".jsonl":
        return "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in line.items()} for line in lines)
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return "|".join(value)
    text = table_files.text_of(value)
    return str(value) if text is None else text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.sentences",
        description="Writes sentences of the attributes of a table of own pictures, by a language model or templates.",
        epilog="Only attributes are sent to the server. A killed or failed command goes on when run again. Exit "
        "status: 0 done, 1 worth another start (the server does not answer), 2 something to change.",
    )
    parser.add_argument("--table", required=True, metavar="FILE", help="table with a column attributes")
    parser.add_argument(
        "--out", metavar="FILE", help="the new table, .csv or .jsonl (default: NAME_sentences beside it)"
    )
    parser.add_argument("--count", type=int, default=3, help="sentences for each set of attributes (3)")
    model = parser.add_argument_group("language model (without --llm, templates write the sentences)")
    model.add_argument(
        "--llm", metavar="URL", help="server with OpenAI's interface, as http://localhost:8000/v1 (vLLM, Ollama, ...)"
    )
    model.add_argument("--model", metavar="NAME", help="name of the model there")
    model.add_argument("--requests", type=int, default=8, help="requests at a time (8)")
    model.add_argument("--timeout", type=float, default=60.0, help="seconds that a request may take (60)")
    model.add_argument("--tries", type=int, default=3, help="answers asked for before the template's is taken (3)")
    model.add_argument("--temperature", type=float, default=0.7, help="of the model's sampling (0.7)")
    return parser


def _asking(parser: argparse.ArgumentParser, args: Mapping[str, Any]) -> Asking | None:
    if (args["llm"] is None) != (args["model"] is None):
        parser.error("--llm URL and --model NAME belong together")
    for name in ("count", "requests", "tries"):
        if args[name] < 1:
            parser.error(f"--{name} must be at least 1")
    if not 0 < args["timeout"] < float("inf") or not 0 <= args["temperature"] <= 2:
        parser.error("--timeout must be above 0 and finite, --temperature between 0 and 2")
    if args["llm"] is None:
        return None
    names = ("model", "requests", "timeout", "tries", "temperature")
    return Asking(args["llm"], **{name: args[name] for name in names})


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = vars(parser.parse_args(argv))
    asking = _asking(parser, args)
    logging.set_verbosity(logging.INFO)
    source = Path(args["table"]).expanduser()
    if not source.exists():
        raise DatasetError(f"there is no table {args['table']}: correct --table")
    suffix = ".jsonl" if source.suffix.lower() in (".jsonl", ".ndjson", ".json", ".parquet", ".pq") else ".csv"
    target = Path(args["out"]).expanduser() if args["out"] else source.with_name(f"{source.stem}_sentences{suffix}")
    print(write(source, target, args["count"], asking))
    if target.resolve().parent != source.resolve().parent:
        print(f"paths of pictures begin in {source.parent}: give it as config.data.own.pictures")
    return 0


if __name__ == "__main__":
    sys.exit(commands.run(main))
