"""LoRA files: dialects, reading, writing, converting."""
