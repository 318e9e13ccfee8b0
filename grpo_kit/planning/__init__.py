"""Before a run: does it fit into memory, how long is a step, is this machine ready."""
