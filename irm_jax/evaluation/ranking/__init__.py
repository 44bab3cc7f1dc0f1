"""Ranks galleries for queries under a protocol: relations, scores on devices, metrics, re-ranking."""
