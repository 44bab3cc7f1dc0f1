"""Meshes, the sharding rules, and several processes that run one program."""
