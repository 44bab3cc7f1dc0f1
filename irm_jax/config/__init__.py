"""The configuration: every key with its default, its checks, and the option classes made from it."""
