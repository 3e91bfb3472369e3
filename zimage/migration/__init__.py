"""From another model's LoRA of a person to one of Z-Image."""
