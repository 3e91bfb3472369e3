"""What every part needs and no part owns: errors, params sections, files, processes, progress, fingerprints."""
