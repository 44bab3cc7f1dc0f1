"""A run's records: metrics, the progress line, how the run was made, and where its time goes."""
