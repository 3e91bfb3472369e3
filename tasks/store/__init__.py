"""Stores: a folder or S3 behind the same few verbs, and the documents of releases in them."""
