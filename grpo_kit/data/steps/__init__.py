"""The steps between a source and the splits, and the results of those that are finished."""
