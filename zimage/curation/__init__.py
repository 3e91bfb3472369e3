"""Decisions about photos: whose face it is, quality, duplicates, split, crops, overrides, contact sheet."""
