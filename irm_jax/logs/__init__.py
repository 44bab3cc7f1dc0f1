"""The records of a run: metrics, how the run was made, and where its time goes."""
