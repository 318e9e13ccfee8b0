"""Decoding: the forward pass of one new token a row."""
