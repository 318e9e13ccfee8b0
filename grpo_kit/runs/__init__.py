"""One run, one folder: its files, its stages, the processes that share it."""
