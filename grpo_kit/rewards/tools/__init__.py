"""Tools around reward files: load one by name, test one on labelled answers."""
