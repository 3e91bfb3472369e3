"""Face engines, and what they measure on one picture."""
