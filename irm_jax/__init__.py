"""irm_jax: instruction-guided person re-identification (Instruct-ReID++, models IRM and IRM++) in JAX and Flax."""

import data_pipelines  # noqa: F401 (first: from here on Ctrl-C ends a command without a traceback)

# isort: split
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from irm_jax.embedder import Embedder
    from irm_jax.evaluation.embeddings import evaluate

__all__ = ["Embedder", "evaluate"]


def __getattr__(name: str) -> Any:
    """Imports `Embedder` and `evaluate` on first use: `import irm_jax` alone loads neither jax nor a model, so that a
    wrong flag or configuration is answered at once."""
    if name == "Embedder":
        from irm_jax.embedder import Embedder

        return Embedder
    if name == "evaluate":
        from irm_jax.evaluation.embeddings import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
