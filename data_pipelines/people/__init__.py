"""People over all data sets: names, numbers, and who stands in two places."""
