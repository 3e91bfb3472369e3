"""How well pictures keep a face: prompts, generation, scores, intervals, report."""
