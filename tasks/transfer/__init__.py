"""What moves between machines: a subject's state, checkpoints, repairs, and what is stale."""
