"""Before a run: whether it fits into memory, how long a step takes, and whether this machine is ready."""
