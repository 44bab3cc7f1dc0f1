"""A run on own pictures: from a table to the data sets, test sets and vocabulary of the tasks that it allows."""
