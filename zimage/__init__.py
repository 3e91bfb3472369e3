"""What turns photos of a person into a Z-Image identity LoRA. Knows no scheduler, no versioning and no network."""
