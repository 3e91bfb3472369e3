"""The identity protocol: generate pictures, score them, select a checkpoint, judge, report."""
