"""Forgetting a person or a photo, and deleting what was replaced."""
