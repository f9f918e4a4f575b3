"""Distances between sets of features, and the quality of single clips."""
