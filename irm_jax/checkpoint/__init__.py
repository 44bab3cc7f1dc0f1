"""Checkpoints: saving, reading and comparing them."""
