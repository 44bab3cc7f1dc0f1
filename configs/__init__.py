"""Configurations; `default.py` holds every key."""
