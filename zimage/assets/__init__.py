"""All packaged data files; each is named by the code that reads it (see zimage.core.assets)."""
