"""The contact sheet: every photo that was given, grouped by what was decided, with boxes and reasons."""
