"""Phases of `personalize`: here or on another machine."""
