"""Writes the pages of the API reference from the source, one per package, without importing it.

Every public name of every module is there: functions, classes with their methods and fields, and constants.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import docstrings

PACKAGES = ("irm_jax", "data_pipelines")
LONGEST_VALUE = 60
"""Characters of a constant's value that are shown."""


def write(root: Path, folder: Path) -> None:
    """Writes `folder/PACKAGE.rst`; a page that would not change is left, so that it is not read again."""
    folder.mkdir(exist_ok=True)
    pages = {package: "\n".join(_page(package, files)) for package, files in packages(root).items()}
    for package, text in pages.items():
        path = folder / f"{package}.rst"
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
    for path in folder.glob("*.rst"):
        if path.stem not in pages:
            path.unlink()


def packages(root: Path) -> dict[str, dict[str, Path]]:
    """Returns package -> module -> file, a package's own `__init__.py` first. Files `__main__.py` are commands."""
    found: dict[str, dict[str, Path]] = {}
    for top in PACKAGES:
        for path in sorted((root / top).rglob("*.py"), key=lambda path: (path.name != "__init__.py", path)):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[-1] != "__main__":
                name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                found.setdefault(".".join(parts[:-1]), {})[name] = path
    return dict(sorted(found.items()))


def _page(package: str, files: dict[str, Path]) -> Iterator[str]:
    yield from (package, "=" * len(package), "")
    for name, path in files.items():
        module = ast.parse(path.read_text("utf-8"))
        if name != package:
            yield from (name, "-" * len(name), "")
        yield from (f".. py:module:: {name}", "", *_text(module), *_members(module.body, method=False))


def _members(body: list[ast.stmt], *, method: bool) -> Iterator[str]:
    """The descriptions of the public names of a module or class, each once."""
    seen: set[str] = set()
    for place, node in enumerate(body):
        name = _name(node)
        if not name or name.startswith("_") or name in seen:
            continue
        seen.add(name)
        if isinstance(node, ast.ClassDef):
            yield from _described("py:class", f"{name}({_constructor(node)})", [], node)
        elif isinstance(node, ast.FunctionDef):
            yield from _function(node, method=method)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            after = body[place + 1] if place + 1 < len(body) else None
            yield from _value(name, node, after, kind="py:attribute" if method else "py:data")


def _name(node: ast.stmt) -> str:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return node.name
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    return target.id if isinstance(target, ast.Name) and isinstance(node, ast.Assign | ast.AnnAssign) else ""


def _function(node: ast.FunctionDef, *, method: bool) -> Iterator[str]:
    decorators = {ast.unparse(decorator).split("(")[0].split(".")[-1] for decorator in node.decorator_list}
    if method and decorators & {"property", "cached_property"}:
        kind = [f":type: {ast.unparse(node.returns)}"] if node.returns else []
        yield from _described("py:property", node.name, kind, node)
        return
    options = [f":{name}:" for name in ("classmethod", "staticmethod") if name in decorators]
    bound = method and "staticmethod" not in decorators
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    signature = f"{node.name}{_signature(node.args, skip_first=bound)}{returns}"
    yield from _described("py:method" if method else "py:function", signature, options, node)


def _constructor(node: ast.ClassDef) -> str:
    """The arguments of `__init__`, or the fields of a data class, in the source's words."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _signature(item.args, skip_first=True)[1:-1]
    fields = [
        f"{_name(item)}: {ast.unparse(item.annotation)}{' = ...' if item.value else ''}"
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and not _name(item).startswith("_")
        and "ClassVar" not in ast.unparse(item.annotation)
    ]
    return ", ".join(fields)


def _signature(arguments: ast.arguments, *, skip_first: bool = False) -> str:
    if skip_first:
        arguments.args = arguments.args[1:]
    return f"({ast.unparse(arguments)})"


def _value(name: str, node: ast.Assign | ast.AnnAssign, after: ast.stmt | None, *, kind: str) -> Iterator[str]:
    """A constant or a field, with the text under it. A field without one stands in its class's arguments alone."""
    text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
    if not isinstance(text, str) and (kind == "py:attribute" or not isinstance(node, ast.AnnAssign)):
        return
    options = [f":type: {ast.unparse(node.annotation)}"] if isinstance(node, ast.AnnAssign) else []
    value = ast.unparse(node.value) if node.value else ""
    if value and len(value) <= LONGEST_VALUE:
        options.append(f":value: {value}")
    yield from (f".. {kind}:: {name}", *(f"   {option}" for option in options), "")
    if isinstance(text, str):
        yield from _indented(docstrings.to_rst(text.splitlines()))


def _described(kind: str, signature: str, options: list[str], node: ast.ClassDef | ast.FunctionDef) -> Iterator[str]:
    yield from (f".. {kind}:: {signature}", *(f"   {option}" for option in options), "")
    yield from _indented(_text(node))
    if isinstance(node, ast.ClassDef):
        yield from _indented(list(_members(node.body, method=True)))


def _text(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> list[str]:
    return docstrings.to_rst((ast.get_docstring(node) or "").splitlines())


def _indented(lines: list[str]) -> Iterator[str]:
    return (f"   {line}" if line else "" for line in lines)
