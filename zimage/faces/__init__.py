"""Finding faces, telling people apart, judging and cropping photos."""
