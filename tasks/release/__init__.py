"""Releases: made, described, licensed, signed, published, moved between channels."""
