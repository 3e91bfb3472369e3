"""The training step of a rectified-flow LoRA and the loop around it."""
