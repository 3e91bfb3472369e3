"""`zimage score`: score and compare any LoRA files and any pictures against real photos of a person."""
