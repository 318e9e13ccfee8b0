"""A run written as files for NeMo-RL, verl or plain TRL."""
