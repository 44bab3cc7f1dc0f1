"""What the parity tests share. Importing it skips a test file where torch is missing (docs/parity.md)."""

from typing import Any

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

torch = pytest.importorskip("torch", reason="parity tests need torch: pip install -e '.[dev,parity]'")

BOUND = 1e-4
LARGEST: dict[str, float] = {}
"""The largest relative error seen, by what was compared; printed at the end of the session."""


def check(name: str, ours: Any, theirs: Any, scale: float | None = None) -> None:
    """The largest difference is at most 1e-4 of the largest value (or of `scale`)."""
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape, (name, ours.shape, theirs.shape)
    error = float(np.abs(ours - theirs).max() / (scale or np.abs(theirs).max()))
    LARGEST[name] = max(LARGEST.get(name, 0.0), error)
    assert error <= BOUND, f"{name}: relative error {error:.2e}"


def scramble(module: Any) -> Any:
    """Every parameter and running statistic random, none at the 0 or 1 of a fresh layer; evaluation mode."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.5 / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return module.eval()


def tower(arrays: dict[str, np.ndarray], name: str) -> dict[str, Any]:
    """The parameters of one tower as a tree."""
    own = {p.removeprefix(f"{name}/"): a for p, a in arrays.items() if p.startswith(f"{name}/")}
    return unflatten_dict(own, sep="/")
