"""Video files to clips and back: decoding, windows, lists, caches, the arcade recorder."""
