"""People over all data sets: names, numbers, and who is in two data sets."""
