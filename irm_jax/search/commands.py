"""The commands of `python -m irm_jax.search`: each takes the parsed options and prints."""

from __future__ import annotations

import argparse
import base64
import html
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipelines import files, images, storage
from irm_jax.config import command_line
from irm_jax.parallel import processes
from irm_jax.search import filters, ingest
from irm_jax.search.crops import read_crops
from irm_jax.search.engines import exists, open_store
from irm_jax.search.index import Answer, Index, open_model
from irm_jax.search.store import SearchError


def run(options: argparse.Namespace) -> int:
    """Runs one command. Raises UserError and RetryError."""
    if "index" in options and not options.index.startswith("milvus://"):
        if options.index.startswith("gs://"):
            storage.require_library(options.index)
        command_line.folder(options.index, "INDEX") if not storage.is_remote(options.index) else None
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "build": _build, "add": _add, "remove": _remove, "query": _query, "info": _info, "compact": _compact,
        "rebuild": _rebuild, "serve": _serve, "recall": _recall, "demo": _demo,
    }  # fmt: skip
    return commands[options.command](options)


def _build(options: argparse.Namespace) -> int:
    processes.start()
    kinds = open_store(options.index).about.columns if exists(options.index) else None
    found = read_crops(options.images, options.table, kinds)
    result = ingest.build(
        options.index, options.model, found, step=step_of(options.step), skip_bad=options.on_bad_image == "skip",
        quiet=options.quiet,
    )  # fmt: skip
    return _report(result)


def _add(options: argparse.Namespace) -> int:
    processes.start()
    store = open_store(options.index)
    found = read_crops(options.source, options.table, store.about.columns)
    model = open_model(store.about, store.uri, options.model)
    return _report(
        ingest.add(store, model, found, skip_bad=options.on_bad_image == "skip", quiet=options.quiet)
    )  # fmt: skip


def _report(result: ingest.Added) -> int:
    print(result.describe())
    for text in result.bad[:20]:
        print(f"  {text}")
    if len(result.bad) > 20:
        print(f"  and {len(result.bad) - 20} more")
    return 0


def _remove(options: argparse.Namespace) -> int:
    store = open_store(options.index)
    condition = filters.parse(options.where, store.about.columns)
    with store.lock():
        count = store.remove(condition)
    left = "; their bytes go from the disk with: python -m irm_jax.search compact" if store.erases and count else ""
    print(f"{count:,} entries removed{left}")
    return 0


def _compact(options: argparse.Namespace) -> int:
    store = open_store(options.index)
    with store.lock():
        store.compact()
    erased = "" if store.erases else "; when removed bytes leave the disk is up to this engine, see docs/search.md"
    print(f"compacted{erased}")
    return 0


def _rebuild(options: argparse.Namespace) -> int:
    from irm_jax.search.rebuild import rebuild

    count = rebuild(open_store(options.index), options.model, step_of(options.step), quiet=options.quiet)
    print(f"{count:,} entries embedded anew")
    return 0


def _info(options: argparse.Namespace) -> int:
    store = open_store(options.index)
    about = store.about
    values: dict[str, Any] = {
        "index": options.index, "entries": store.count(), "model": about.model, "step": about.step,
        "fingerprint": about.fingerprint, "widths": about.widths, "columns": about.columns,
        "thresholds": {task: values["value"] for task, values in about.thresholds.items()}, **store.sizes(),
    }  # fmt: skip
    if options.json:
        print(json.dumps(values, indent=1, ensure_ascii=False))
        return 0
    for name, value in values.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items()) or "none known"
        print(f"{name:30} {value:,}" if isinstance(value, int) and name != "step" else f"{name:30} {value}")
    return 0


def _query(options: argparse.Namespace) -> int:
    index = Index(options.index, model=options.model, approximate=options.approximate)
    instruction: Any = options.instruction
    if instruction and Path(instruction).suffix.lower() in images.SUFFIXES:
        instruction = Path(instruction)
    answer = index.query(
        options.image, instruction, options.sentence, options.where, options.top, options.rescore
    )  # fmt: skip
    if options.json:
        print(json.dumps(as_json(answer), indent=1, ensure_ascii=False, default=str))
    else:
        print(as_text(answer))
    if options.html:
        asked = options.sentence or " + ".join(filter(None, (options.image, options.instruction)))
        pictures = index.store.pictures([hit.id for hit in answer])
        files.write_atomically(Path(options.html), as_html(answer, asked, options.where, pictures))
        print(f"page: {options.html}", file=sys.stderr)
    return 0


def _serve(options: argparse.Namespace) -> int:
    from irm_jax.search import page

    access = page.Access.of(options.host, options.port, options.password_file)
    page.serve(Index(options.index, model=options.model), access, refresh=options.refresh)
    return 0


def _recall(options: argparse.Namespace) -> int:
    from irm_jax.search.recall import recall

    index = Index(options.index, model=options.model)
    if options.make_index:
        with index.store.lock():
            index.store.make_index()
    for line in recall(index, options.top, options.queries, options.where):
        print(line)
    return 0


def _demo(options: argparse.Namespace) -> int:
    from irm_jax.search import demo

    if not options.no_page:
        from irm_jax.search import page

        access = page.Access.of(options.host, options.port, options.password_file)
    index = demo.prepare(Path(options.folder), options.people, options.model)
    if not options.no_page:
        page.serve(index, access, refresh=options.refresh, examples=demo.examples(Path(options.folder)))
    return 0


def step_of(text: str | None) -> Any:
    """A step from the command line: a number, "best", or None for the latest."""
    if text is None or text == "latest":
        return None
    if text == "best" or text.isdecimal():
        return text if text == "best" else int(text)
    raise SearchError(f"--step {text!r} is neither a number nor best nor latest")


def as_json(answer: Answer) -> dict[str, Any]:
    """An answer as plain values."""
    hits = [
        {"id": hit.id, "path": hit.path, "score": hit.score, "above": hit.above, "match": hit.match, **hit.columns}
        for hit in answer
    ]
    threshold = answer.threshold.value if answer.threshold else None
    return {"hits": hits, "threshold": threshold, "notes": answer.notes(), "searched": answer.searched,
            "version": answer.version}  # fmt: skip


def as_text(answer: Answer) -> str:
    """An answer as lines of a table."""
    lines = []
    for number, hit in enumerate(answer, 1):
        above = {True: "above", False: "below", None: ""}[hit.above]
        columns = "  ".join(f"{name} {value}" for name, value in hit.columns.items() if value is not None)
        lines.append(f"{number:4}  {hit.score:7.4f}  {above:5}  {hit.path}  {columns}".rstrip())
    return "\n".join([*lines, f"{answer.searched:,} entries searched", *answer.notes()])


def as_html(answer: Answer, asked: str, where: str | None, pictures: dict[str, bytes]) -> str:
    """An answer as a page that needs nothing else; the hits' pictures are in it."""
    cells = []
    for number, hit in enumerate(answer, 1):
        picture = pictures.get(hit.id, b"")
        source = f"data:{media_type(picture)};base64,{base64.b64encode(picture).decode()}"
        columns = "<br>".join(
            html.escape(f"{name}: {value}") for name, value in hit.columns.items() if value is not None
        )
        state = {True: "above the threshold", False: "below the threshold", None: ""}[hit.above]
        cells.append(
            f'<figure class="{"below" if hit.above is False else ""}"><img alt="hit {number}" '
            f'src="{source}"><figcaption><b>{number}. {hit.score:.3f}</b> '
            f"{state}<br>{columns}<br><small>{html.escape(hit.path)}</small></figcaption></figure>"
        )
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in answer.notes())
    filtered = f"<p>filter: <code>{html.escape(where)}</code></p>" if where else ""
    style = (
        "body{font:16px system-ui;margin:2rem;max-width:70rem}main{display:grid;gap:1rem;grid-template-columns:"
        "repeat(auto-fill,minmax(9rem,1fr))}img{width:100%;border-radius:4px}figure{margin:0;overflow-wrap:anywhere}"
        ".below{opacity:.55}"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Search</title><style>{style}</style><h1>{html.escape(asked)}</h1>{filtered}{notes}"
        f"<main>{''.join(cells)}</main></html>\n"
    )


def media_type(data: bytes) -> str:
    """Of a picture that an index keeps."""
    kinds = ((b"\xff\xd8", "image/jpeg"), (b"\x89PNG", "image/png"), (b"GIF8", "image/gif"), (b"RIFF", "image/webp"))
    return next((kind for start, kind in kinds if data.startswith(start)), "application/octet-stream")
