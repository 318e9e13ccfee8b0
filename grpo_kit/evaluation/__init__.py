"""Accuracy before and after training, with intervals; screening of training prompts."""
