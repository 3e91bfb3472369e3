"""Generated pictures: prompts, the generator, the cache of what it made."""
