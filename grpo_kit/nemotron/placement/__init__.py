"""Where the routed experts of a model lie: counted, chosen, moved."""
