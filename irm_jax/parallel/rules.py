"""The sharding table: how each array of the training state is laid out on the mesh, by the path of the array.

An image encoder brings rules of its own (`add_rules`); moments of an optimizer follow their parameters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from irm_jax.parallel.mesh import ROWS, ShardingError

Layout = tuple[str | tuple[str, ...] | None, ...]
Rule = tuple[str, Layout]
"""A regular expression that is searched in the path, and the mesh axes of the array's *last* axes.

Earlier axes, such as that of scanned layers, are not split. The first rule that matches counts.
"""

RULES: tuple[Rule, ...] = (
    (r"(memory_bank|caption_queue)/entries/(key|instruction|image|text)$", (ROWS, None, None, None)),
    (r"(memory_bank|caption_queue)/entries/(identity|clothes|dataset|task|kind)$", (ROWS, None, None)),
    (r"query_key_value/kernel$", ("fsdp", None, "model", None)),
    (r"query_key_value/bias$", (None, "model", None)),
    (r"cross_attention/(query|key|value)/kernel$", ("fsdp", "model", None)),
    (r"cross_attention/(query|key|value)/bias$", ("model", None)),
    (r"attention/output/kernel$", ("model", None, "fsdp")),
    (r"mlp/expand/kernel$", ("fsdp", "model")),
    (r"mlp/expand/bias$", ("model",)),
    (r"mlp/contract/kernel$", ("model", "fsdp")),
    (r"word_embedding$", ("model", "fsdp")),
    (r"head_(cls|person|guided)$", ("fsdp", "model")),
    (r"(image|text)_projection/kernel$", ("fsdp", None)),
    (r"(matching_head|replaced_head|word_head/transform)/kernel$", ("fsdp", None)),
    (r"word_head/word_bias$", ("model",)),
    (r"encoder_projection/kernel$", ("fsdp", None)),
    (r"(position_embedding|type_embedding)$", (None,)),
    (r"(/bias|/scale|/temperature)$", (None,)),
    (r"batch_stats/.*(mean|var)$", (None,)),
    (r"instruction_mean/", (None,)),
    (r"(^|/)(step|pushes)$", ()),
)
SMALL = 1 << 14
"""Arrays of fewer elements are replicated: moving them costs more than holding them."""

_OPTIMIZER, _PARAMETERS = "opt_state/", "params/"
_added: dict[str, tuple[Rule, ...]] = {}


def add_rules(owner: str, rules: Sequence[Rule]) -> None:
    """Adds the rules of one owner, say an image encoder by its registry name; they come before `RULES`.

    To leave other arrays alone, a pattern should name the owner's own path. Adding the same rules again does nothing;
    raises ValueError for other rules under the same name.
    """
    if _added.setdefault(owner, tuple(rules)) != tuple(rules):
        raise ValueError(f"{owner} has sharding rules already, and others: {_added[owner]}")


def path_string(path: Sequence[Any]) -> str:
    """Writes a key path of jax.tree_util as `a/b/c`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def leaf_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """Returns the layout of one array that is no optimizer state.

    Raises ShardingError for an array that no rule names or whose sizes do not divide over the mesh.
    """
    every = (*(rule for rules in _added.values() for rule in rules), *RULES)
    found = next((layout for pattern, layout in every if re.search(pattern, path)), None)
    if found is None:
        raise ShardingError(
            f"no sharding rule matches {path} {shape}; add one to the rules of its encoder, or to "
            "irm_jax/parallel/rules.py"
        )
    if math.prod(shape) < SMALL and ROWS not in found:
        return P()  # what lies in blocks of the batch stays with its rows whatever its size
    layout = found[-len(shape) :] if shape else ()
    full = (None,) * (len(shape) - len(layout)) + layout
    for size, axis in zip(shape, full, strict=True):
        pieces = math.prod(mesh.shape[name] for name in (axis if isinstance(axis, tuple) else (axis,)) if name)
        if size % pieces:
            raise ShardingError(
                f"{path} {shape}: size {size} does not divide over mesh axis {axis!r} of {pieces}; "
                "choose another mesh, or pad the size (config.model.identity_multiple, config.model.vocab_multiple)"
            )
    return P(*full)


def optimizer_leaf_spec(path: str, shape: tuple[int, ...], parameters: Mapping[str, tuple[int, ...]], mesh: Mesh) -> P:
    """Returns the layout of one array of an optax state, whatever the optimizer.

    `parameters`: shape by path. An array belongs to the parameter that its path ends with (`opt_state/1/0/mu/` and the
    parameter's path). A moment of the parameter's shape takes its layout; a factored moment, which lacks some of the
    parameter's axes (Adafactor), takes the layout of those it has. Scalars, small arrays and all others are replicated.
    """
    if math.prod(shape) < SMALL:
        return P()
    parts = path.split("/")
    names = ("/".join(parts[start:]) for start in range(1, len(parts)))
    name = next((name for name in names if name in parameters), None)
    if name is None:
        return P()
    whole = leaf_spec(_PARAMETERS + name, parameters[name], mesh)
    axes = _axes_kept(parameters[name], shape)
    if axes is None or not any(whole):
        return P()
    return P(*(whole[axis] for axis in axes))


def _axes_kept(whole: tuple[int, ...], part: tuple[int, ...]) -> list[int] | None:
    """Finds the axes of `whole` that `part` kept: (2, 3, 4), (2, 4) -> [0, 2]; None if `part` has other sizes."""
    axes: list[int] = []
    for size in part:
        found = next((axis for axis in range(axes[-1] + 1 if axes else 0, len(whole)) if whole[axis] == size), None)
        if found is None:
            return None
        axes.append(found)
    return axes


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Returns the NamedSharding of every leaf of a tree of arrays or ShapeDtypeStructs, by the table.

    Leaves below `opt_state` go by `optimizer_leaf_spec`, with the parameters below `params`. Raises ShardingError as
    `leaf_spec`.
    """
    named = [(path_string(path), tuple(leaf.shape)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    parameters = {path.removeprefix(_PARAMETERS): shape for path, shape in named if path.startswith(_PARAMETERS)}

    def spec(path: str, shape: tuple[int, ...]) -> P:
        if path.startswith(_OPTIMIZER):
            return optimizer_leaf_spec(path, shape, parameters, mesh)
        return leaf_spec(path, shape, mesh)

    return jax.tree.unflatten(jax.tree.structure(tree), [NamedSharding(mesh, spec(*leaf)) for leaf in named])
