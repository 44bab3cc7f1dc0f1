"""The page of an index (`search serve`): a picture, clothes or words in, hits with their scores out."""

from __future__ import annotations

import dataclasses
import hmac
import html
import os
import re
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from data_pipelines.files import temporary_folder
from irm_jax.errors import RetryError, UserError, pip_line
from irm_jax.search import crops
from irm_jax.search.index import Answer, Hit, Index
from irm_jax.search.store import SearchError

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
try:
    import gradio as gr
except ImportError as error:
    raise SearchError(f"the page needs Gradio, which is missing here: {pip_line('search')}") from error

LOCAL = ("127.0.0.1", "localhost", "::1")
MOST_CAMERAS = 200
MOST_UPLOAD = "50mb"
USE = (
    "For research on person re-identification. Not for identifying, tracking or judging people without their consent. "
    "Pictures stay on the machine that serves this page."
)
CSS = """
.gradio-container {max-width: 76rem !important; margin: auto}
#hits .grid-wrap {max-height: none !important; overflow: visible !important; height: auto !important}
#hits .grid-container {grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)) !important}
#hits .thumbnail-lg {aspect-ratio: auto; display: flex; flex-direction: column; height: auto}
#hits .thumbnail-lg img {aspect-ratio: 1 / 2; height: auto}
#hits .caption-label {position: static; white-space: pre-line; max-width: none; width: 100%; text-align: left;
    font-variant-numeric: tabular-nums}
#hits .thumbnail-lg:hover .caption-label {opacity: 1}
#picked {position: fixed; left: 0; right: 0; bottom: 0; z-index: 50; flex-flow: row wrap; align-items: center;
    padding: .5rem max(1rem, calc(50% - 37rem)); overflow-wrap: anywhere;
    background: var(--background-fill-primary); border-top: 1px solid var(--border-color-primary)}
#picked #detail {flex: 1 1 18rem; width: auto}
#picked #more {flex: 0 0 auto; width: auto}
.gradio-container:not(:has(#more)) #hits .selected {--ring-color: transparent;
    border-color: var(--border-color-primary)}
.gradio-container {padding-bottom: 6rem !important}
#use {opacity: .75; font-size: .9rem}
"""


@dataclasses.dataclass(frozen=True)
class Access:
    """Where the page listens, and who may open it: passwords by user; None lets everybody who reaches it."""

    host: str
    port: int
    users: tuple[tuple[str, str], ...] | None

    @classmethod
    def of(cls, host: str, port: int, password_file: str | None) -> Access:
        """Raises SearchError for another address than this machine's without passwords, a file without any, or a number
        that is no port."""
        if not 0 <= port <= 65535:
            raise SearchError(f"--port {port}: a port is a number from 1 to 65535; 0 takes a free one")
        if password_file is None:
            if host not in LOCAL:
                raise SearchError(
                    f"--host {host} would open the pictures to everybody who reaches this machine: give "
                    "--password_file FILE with lines USER:PASSWORD"
                )
            return cls(host, port, None)
        try:
            lines = Path(password_file).expanduser().read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SearchError(f"--password_file {password_file} cannot be read ({error})") from error
        users = tuple((line.partition(":")[0], line.partition(":")[2]) for line in lines if line.strip())
        if not users or not all(name and password for name, password in users):
            raise SearchError(f"--password_file {password_file}: each line is USER:PASSWORD, and there is at least one")
        return cls(host, port, users)

    def allows(self, user: str, password: str) -> bool:
        """Whether the password is the user's; as long to answer whichever part is wrong."""
        found = False
        for name, secret in self.users or ():
            same = hmac.compare_digest(name.encode(), user.encode())
            found |= same & hmac.compare_digest(secret.encode(), password.encode())
        return found


def _upload(label: str, height: int, name: str) -> Any:
    """An upload as the file that came, whatever it is: reading it is `crops.decode`'s, with its limits and messages."""
    made = gr.Image(label=label, type="filepath", image_mode=None, height=height, sources=["upload", "clipboard"],
                    elem_id=name)  # fmt: skip
    # Not by a class of its own: Gradio writes a stub beside the file of every class that derives from a component's.
    setattr(made, "preprocess", lambda payload: payload.path if payload is not None else None)  # noqa: B010
    return made


class Page:
    """The page's parts and what happens between them."""

    def __init__(self, index: Index, examples: Sequence[tuple[str | None, str | None, str | None]] = ()) -> None:
        self.index, self.examples = index, examples

    def build(self) -> Any:
        """The Gradio application."""
        with gr.Blocks(title="Person search", analytics_enabled=False, delete_cache=(3600, 3600)) as app:
            gr.Markdown("# Person search")
            gr.Markdown(USE, elem_id="use")
            hits = gr.State([])
            chosen = gr.State(None)
            with gr.Row():
                with gr.Column(scale=1, min_width=280):
                    image = _upload("Picture of a person", 260, "image")
                    words = gr.Textbox(
                        label="Words", elem_id="words", lines=1, max_lines=3, max_length=1000, submit_btn=False,
                        placeholder="alone: a person in a red shirt; with a picture: wearing a green shirt",
                    )  # fmt: skip
                    with gr.Accordion("Clothes to look for, as a picture", open=False):
                        clothes = _upload("Clothes", 160, "clothes")
                    filters = self._filters()
                    with gr.Row():
                        go = gr.Button("Search", variant="primary", elem_id="search", min_width=100)
                        clear = gr.ClearButton(
                            [image, words, clothes, *filters[:4]], value="Clear", elem_id="clear", min_width=100
                        )
                    tried = self._tried(image, words)
                with gr.Column(scale=3, min_width=320):
                    notes = gr.Markdown(self._empty(), elem_id="notes")
                    shown = gr.Gallery(show_label=False, columns=5, height="auto", allow_preview=False,
                                       object_fit="contain", elem_id="hits", buttons=[], format="png",
                                       visible=False)  # fmt: skip
            with gr.Column(elem_id="picked", visible=False) as picked:
                detail = gr.Markdown("", elem_id="detail")
                more = gr.Button("More like this", elem_id="more")
            outputs = [shown, notes, hits, chosen, detail, picked]
            inputs = [image, words, clothes, *filters]
            for event in (go.click, words.submit, filters[3].submit):
                event(self._search, inputs, outputs, api_visibility="private")
            if tried is not None:
                tried.load_input_event.then(self._search, inputs, outputs, api_visibility="private")
            shown.select(self._choose, [hits], [chosen, detail, picked], api_visibility="private")
            more.click(self._similar, [chosen, *filters], outputs, api_visibility="private")
            clear.click(self._cleared, None, outputs, api_visibility="private")
            app.load(self._opened, None, [notes, filters[0]], api_visibility="private")
        return app

    def _tried(self, image: Any, words: Any) -> Any:
        """The prepared queries; None without any."""
        rows = [[picture, sentence or instruction] for sentence, picture, instruction in self.examples]
        return gr.Examples(rows, [image, words], label="Try", cache_examples=False) if rows else None

    def _opened(self) -> list[Any]:
        """Number of pictures and cameras of the version that is served when the page is opened."""
        cameras = self._cameras()
        return [self._empty(), gr.update(choices=cameras, visible=len(cameras) > 0)]

    def _cameras(self) -> list[str]:
        found = self.index.snapshot.table["camera"].unique().to_pylist()
        return sorted(one for one in found if one is not None)[:MOST_CAMERAS]

    def _filters(self) -> list[Any]:
        """Cameras, from, to, filter, number of hits."""
        cameras = self._cameras()
        columns = ", ".join(f"{name} ({kind})" for name, kind in sorted(self.index.about.columns.items()))
        with gr.Accordion("Filter", open=False, elem_id="filters"):
            camera = gr.Dropdown(cameras, multiselect=True, label="Cameras", value=[],
                                 elem_id="cameras", visible=len(cameras) > 0)  # fmt: skip
            with gr.Row():
                start = gr.Textbox(label="From", placeholder="2026-01-31 08:00", max_lines=1, elem_id="from")
                end = gr.Textbox(label="Until", placeholder="2026-01-31 18:00", max_lines=1, elem_id="until")
            text = gr.Textbox(label="Filter", placeholder="camera != 'gate'", max_lines=1, elem_id="where",
                              info=f"columns: {columns}")  # fmt: skip
            top = gr.Slider(5, 100, value=20, step=5, label="Hits", elem_id="top")
        return [camera, start, end, text, top]

    def _empty(self) -> str:
        count = len(self.index.snapshot)
        if not count:
            return "The index is empty: add pictures with `python -m irm_jax.search add`."
        return (
            f"**{count:,} pictures.** Ask with\n\n"
            "* a picture of a person: who looks the same?\n"
            "* a picture and words, or a picture of clothes: the same person, wearing them\n"
            "* words alone: whom do they describe?\n\nthen press Enter or Search."
        )

    def _search(self, image: Any, words: str, clothes: Any, *filters: Any) -> list[Any]:
        instruction: Any = Path(clothes) if clothes else (words or "").strip() or None

        def asked() -> Answer:
            if image is None and clothes:
                raise SearchError("a picture of clothes goes with a picture of a person: drop one, or use words alone")
            if image is None and not (words or "").strip():
                raise SearchError("drop a picture of a person, or describe one in words")
            where, top = _where(*filters[:4]), int(filters[4])
            if image is None:
                return self.index.query(sentence=words, where=where, top=top)
            return self.index.query(Path(image), instruction, where=where, top=top)

        return self._answered(asked)

    def _similar(self, chosen: str | None, *filters: Any) -> list[Any]:
        def asked() -> Answer:
            if chosen is None:
                raise SearchError("choose a hit first")
            return self.index.similar(chosen, _where(*filters[:4]), int(filters[4]))

        return self._answered(asked)

    def _answered(self, asked: Callable[[], Answer]) -> list[Any]:
        """The hits; where the user made a mistake its message, in place of them and in the corner of the window."""
        try:
            return self._shown(asked())
        except (UserError, RetryError) as error:
            gr.Warning(html.escape(str(error)), duration=10, title="Not searched")
            return self._without_hits(f"**Not searched:** {_literally(str(error))}")

    def _shown(self, answer: Answer) -> list[Any]:
        stored = self.index.store.pictures([hit.id for hit in answer])
        pictures = []
        hits = [hit for hit in answer if hit.id in stored]
        for number, hit in enumerate(hits, 1):
            pictures.append((crops.decode(stored[hit.id], hit.path), _caption(number, hit)))
        found = f"**{len(hits)} hits** of {answer.searched:,} pictures." if hits else "**No hits.**"
        notes = "  \n".join([found, *map(_literally, answer.notes())])
        if not hits:
            return self._without_hits(notes)
        rows = [(hit.id, _detail(hit)) for hit in hits]
        shown = gr.update(value=pictures, selected_index=None, visible=True)
        return [shown, notes, rows, None, "", gr.update(visible=False)]

    def _without_hits(self, notes: str) -> list[Any]:
        return [gr.update(value=[], selected_index=None, visible=False), notes, [], None, "", gr.update(visible=False)]

    def _choose(self, hits: list[tuple[str, str]], event: gr.SelectData) -> list[Any]:
        if not isinstance(event.index, int) or not 0 <= event.index < len(hits):
            return [None, "", gr.update(visible=False)]
        entry, detail = hits[event.index]
        return [entry, detail, gr.update(visible=True)]

    def _cleared(self) -> list[Any]:
        return self._without_hits(self._empty())


def serve(
    index: Index, access: Access, *, refresh: float = 20.0,
    examples: Sequence[tuple[str | None, str | None, str | None]] = (),
) -> None:  # fmt: skip
    """Serves the page until the process is interrupted or terminated; looks for a new version every `refresh` seconds.

    Raises SearchError if the port is taken, or `refresh` is no time.
    """
    if not 0 < refresh <= threading.TIMEOUT_MAX:
        raise SearchError(f"--refresh {refresh:g}: give the seconds between two looks, more than 0")
    end = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: end.set())
    with temporary_folder("irm_search_") as scratch:  # uploads and thumbnails go with the process
        os.environ["GRADIO_TEMP_DIR"] = scratch
        print("loading the model and the vectors", flush=True)
        index.warm()
        app = launch(Page(index, examples), access)
        print(f"serving {index.store.uri} ({len(index.snapshot):,} pictures) at {app.local_url}", flush=True)
        try:
            while not end.wait(refresh):
                _refreshed(index)
        finally:
            app.close()


def launch(page: Page, access: Access) -> Any:
    """Starts the server in threads; returns the application, to be closed. Raises SearchError if the port is taken."""
    app = page.build()
    fonts = ["system-ui", "sans-serif"]
    # What Gradio blocks it blocks below as well: not where its own files are, say in / or in TMPDIR.
    here = Path.cwd()
    blocked = [] if Path(os.environ["GRADIO_TEMP_DIR"]).resolve().is_relative_to(here) else [str(here)]
    try:
        app.launch(
            server_name=access.host, server_port=access.port or None, prevent_thread_lock=True, quiet=True, share=False,
            auth=access.allows if access.users else None, footer_links=[], max_file_size=MOST_UPLOAD, allowed_paths=[],
            blocked_paths=blocked, css=CSS, ssr_mode=False, enable_monitoring=False, show_error=True,
            theme=gr.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"]), mcp_server=False, pwa=False,
        )  # fmt: skip
    except OSError as error:
        raise SearchError(
            f"port {access.port} of {access.host} cannot be used ({error}): choose another --port"
        ) from error
    return app


def _refreshed(index: Index) -> None:
    try:
        if index.refresh():
            print(f"version {index.snapshot.version}: {len(index.snapshot):,} pictures", flush=True)
    except (UserError, RetryError) as error:  # the version in memory goes on being served
        logging.warning("no newer version can be read: %s", error)


def _literally(text: str) -> str:
    """Markdown that shows the text as it is."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)


def _where(cameras: Sequence[str] | None, start: str | None, end: str | None, text: str | None) -> str | None:
    """One filter of the parts that are filled in."""
    parts = []
    if cameras:
        parts.append("camera IN (" + ", ".join(_quoted(one) for one in cameras) + ")")
    if start and start.strip():
        parts.append(f"time >= {_quoted(start.strip())}")
    if end and end.strip():
        parts.append(f"time <= {_quoted(end.strip())}")
    if text and text.strip():
        parts.append(f"({text})")
    return " AND ".join(parts) or None


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _caption(number: int, hit: Hit) -> str:
    state = {True: " · above", False: " · below", None: ""}[hit.above]
    beside = [str(hit.columns[name]) for name in ("camera", "time") if hit.columns.get(name) is not None]
    return "\n".join([f"{number}. {hit.score:.3f}{state}", *beside])


def _detail(hit: Hit) -> str:
    columns = [f"{name}: {value}" for name, value in hit.columns.items() if value is not None]
    match = [f"match {hit.match:.3f}"] if hit.match is not None else []
    return (
        "`"
        + "` · `".join(text.replace("`", "'") for text in (f"score {hit.score:.4f}", *match, *columns, hit.path))
        + "`"
    )
