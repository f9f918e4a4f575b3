"""Perceptual distances between clips."""
