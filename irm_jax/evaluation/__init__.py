"""Evaluation: embeddings to exact figures (ranking, protocols), comparison of runs, and the report."""
