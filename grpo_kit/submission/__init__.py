"""submission.zip: written, read without trust, checked against what the scorer does."""
