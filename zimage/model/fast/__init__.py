"""The same products as diffusers' blocks, computed with less time and memory."""
