"""Losses as pure functions of arrays and masks; each returns one value per row and what was left out.

Formulas: docs/method.md.
"""
