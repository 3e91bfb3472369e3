"""Which checkpoint and strength to use."""
