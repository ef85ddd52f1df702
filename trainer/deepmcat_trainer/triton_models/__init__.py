"""What `deepmcat export --triton` copies into a model repository: run by Triton, and by nothing here."""
