"""The generator for other engines."""
