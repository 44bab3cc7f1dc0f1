"""From raw pictures to batches: sources, shards, sampling, augmentation. NumPy only; nothing here imports jax."""
