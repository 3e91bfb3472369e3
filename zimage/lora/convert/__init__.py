"""LoRA files changed: read, converted, merged, resized, written, verified."""
