"""Draws people, clothes and scenes: deterministic in (seed, version), at any size."""
