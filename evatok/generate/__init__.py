"""Clips from a model: samples, predictions, reconstructions."""
