"""The device mesh, the sharding rules of the training state, and programs of several processes."""
