"""Transfer between machines: a subject's state, checkpoints, repairs, and staleness."""
