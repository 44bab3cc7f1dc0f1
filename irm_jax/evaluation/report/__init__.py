"""Writes the report of an evaluation: results.json, the page, its charts and pictures."""
