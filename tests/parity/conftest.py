"""Parity with PyTorch: random weights, the same input, a relative error of at most 1e-4 in f32."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from irm_jax.convert import conversion, folder, kinds
from irm_jax.convert.source import Source


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Torch's numbers are the same in every run; one thread beside jax's."""
    import torch

    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def converted(tmp_path: Path) -> Callable[..., Any]:
    """State dict -> file -> conversion -> folder -> (manifest, arrays by path), the way of a user."""

    def make(kind: str, state: dict[str, Any], **options: Any) -> Any:
        from safetensors.torch import save_file

        file = tmp_path / "weights.safetensors"
        save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, file)
        source = Source(file)
        found = kinds.convert(kind, source, conversion.Options(**options))
        assert not [name for name, why in found.left if why.endswith(conversion.UNKNOWN)]
        folder.save(found, source, tmp_path / "converted")
        return folder.load(tmp_path / "converted")

    return make


def pytest_terminal_summary(terminalreporter: Any) -> None:
    shared = sys.modules.get("parity")  # not where all was skipped
    for name, error in sorted(getattr(shared, "LARGEST", {}).items()):
        terminalreporter.write_line(f"largest relative error of {name}: {error:.1e}")
