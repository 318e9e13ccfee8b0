"""The Nemotron-H model in 4 bits: checkpoints, experts, the embedded tiny policy."""
