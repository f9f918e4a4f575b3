"""Clips and whole videos to tokens and back."""
