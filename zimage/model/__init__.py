"""Z-Image as diffusers lays it out: loading, text, latents, sequences."""
