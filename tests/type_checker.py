"""Run-time checks of the annotations that state shapes and types of arrays; conftest.py installs them.

Where an annotation names a JAX array, NumPy arrays and plain numbers pass too, as jax.numpy takes them. Their shape and
type are checked in the same way.
"""

import re
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import beartype
from jaxtyping import install_import_hook

_ARRAYS = re.compile(rf"\b({'|'.join(name for name in dir(jaxtyping) if name[0].isupper())})\[")


def install(*packages: str) -> None:
    """Makes every function of the packages, once they are imported, check its annotations of arrays."""
    setattr(jaxtyping, "Array", jaxtyping.ArrayLike)  # noqa: B010
    install_import_hook(packages, f"{__name__}.check")


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function check the arguments, and the result, that jaxtyping annotates as arrays; no other annotation.

    Not the constructors: a dataclass says itself, with names, what does not fit together.
    """
    if function.__name__ == "__init__":
        return function
    arrays = {name: hint for name, hint in function.__annotations__.items() if _ARRAYS.search(str(hint))}
    if not arrays:
        return function
    function.__annotations__ = arrays
    return beartype(function)
