"""Kaggle: credentials, kernels, wheels, submissions."""
