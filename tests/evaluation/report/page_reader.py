"""Reads a page of the report: checks that its tags are nested and gathers tags, text and figures."""

import html.parser

VOID = {"meta", "img", "br", "link", "input", "hr", "path", "circle", "polygon"}


class Page(html.parser.HTMLParser):
    """A page. `figures`: what it shows of each path in results.json; `open`: tags that were never closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.figures: dict[str, set[str]] = {}
        self.text: list[str] = []
        self._figure = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self._figure = found.get("data-figure", "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}> at {self.getpos()}"
        self.open.pop()
        self._figure = ""

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._figure:
            self.figures.setdefault(self._figure, set()).add(data)

    def having(self, css: str) -> list[dict]:
        return [attrs for _, attrs in self.tags if css in (attrs.get("class") or "").split()]
