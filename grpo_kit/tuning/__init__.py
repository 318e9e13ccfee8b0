"""A search over settings with Optuna."""
