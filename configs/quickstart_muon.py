"""The quickstart with muon and a class token that starts from the pooled picture, in place of the paper's AdamW and a
class token that starts from a parameter alone.

What that gains is in docs/ablations.md, "Muon and a pooled class token".
"""

from __future__ import annotations

from ml_collections import ConfigDict

from irm_jax.config import load, muon_and_pooled_class


def get_config() -> ConfigDict:
    return muon_and_pooled_class(load("quickstart"))
