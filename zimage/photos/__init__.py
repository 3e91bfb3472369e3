"""Files in, clean pictures out: sources, archives, decoding in a pool of processes, the cache of results."""
