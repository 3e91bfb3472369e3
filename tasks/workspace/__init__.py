"""The workspace of a subject on this machine: its inputs, its params, DVC."""
