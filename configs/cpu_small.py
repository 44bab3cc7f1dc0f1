"""The procedural benchmark at the length a small model needs: about 35 minutes on two cores."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.train.steps = 2400
    config.optimizer.warmup_steps = 100
    config.checkpoint.every = 400
    return config
