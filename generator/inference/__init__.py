"""Sampling: requests in, tokens out."""
