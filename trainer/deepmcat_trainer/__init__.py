"""Makes an artifact from an unlabelled archive."""
