"""Modules import downwards only, and in no circle. Imports inside functions count, those for types alone do not."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = (
    "data_pipelines",
    "irm_jax.allocator",
    "irm_jax.errors",
    "irm_jax.config",
    "irm_jax.parallel",
    "irm_jax.losses",
    "irm_jax.models",
    "irm_jax.objectives",
    "irm_jax.checkpoint",
    "irm_jax.logs",
    "irm_jax.convert",
    "irm_jax.evaluation",
    "irm_jax.training",
    "irm_jax.config.check",
    "irm_jax.run",
    "irm_jax.compile",
    "irm_jax.pretrained",
    "irm_jax.embedder",
    "irm_jax.export",
    "irm_jax.search",
    "irm_jax.modes",
    "irm_jax.main",
    "irm_jax",
)
"""Lowest first. A module belongs to the longest prefix of its name; the package offers `Embedder` and `evaluate`."""


def modules() -> dict[str, Path]:
    """The files of the library, by module name."""
    found = {}
    for package in ("data_pipelines", "irm_jax"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST) -> Iterator[str]:
    """Every name that a file imports, wherever in it, except under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not counted"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imported(node)


def graph() -> dict[str, set[str]]:
    """Module -> the modules of the library that it imports. `from package import module` imports the module."""
    known = modules()
    edges: dict[str, set[str]] = {}
    for name, path in known.items():
        edges[name] = set()
        for target in imported(ast.parse(path.read_text("utf-8"))):
            module = target if target in known else target.rpartition(".")[0]
            if module in known and module != name:
                edges[name].add(module)
    return edges


def layer(name: str) -> int:
    """The place of a module in `LAYERS`."""
    fitting = [prefix for prefix in LAYERS if name == prefix or name.startswith(f"{prefix}.")]
    return LAYERS.index(max(fitting, key=len))


def test_layers_import_downwards_only() -> None:
    upwards = {
        (importer, target) for importer, targets in graph().items() for target in targets
        if layer(target) > layer(importer)
    }  # fmt: skip
    assert upwards == set()


def test_no_import_circle() -> None:
    """Takes away, again and again, what imports nothing that is left."""
    left = graph()
    while ready := {name for name, targets in left.items() if not targets & left.keys()}:
        left = {name: targets for name, targets in left.items() if name not in ready}
    # What is left also has what leads to a circle: of that, what nothing that is left imports.
    while leading := left.keys() - {target for targets in left.values() for target in targets}:
        left = {name: targets for name, targets in left.items() if name not in leading}
    assert {name: sorted(targets & left.keys()) for name, targets in left.items()} == {}


def test_the_library_imports_no_run_file() -> None:
    outside = {"configs", "tests", "benchmarks"}
    for name, path in modules().items():
        found = set(imported(ast.parse(path.read_text("utf-8"))))
        assert not {target for target in found if target.split(".")[0] in outside}, name
