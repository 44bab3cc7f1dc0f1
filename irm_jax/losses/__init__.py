"""Losses as pure functions: arrays and masks in, one value a row and what was counted out."""
