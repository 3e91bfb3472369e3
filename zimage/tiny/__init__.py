"""A small real Z-Image, pre-trained on drawn faces, so that everything runs without downloads."""
