"""What the command line prints; notebooks show some of the same tables."""
