"""Ahead-of-time compilation: the real programs of a run for devices that are not here, and what they cost there."""
