"""LoRA files as they are: header, keys, dialects, model families, what loaders do with them."""
