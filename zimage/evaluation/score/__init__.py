"""Scores of one picture, and the real photos that scores are compared with."""
