"""A built data set on disk: records, index, shards; writing, reading and copying them."""
