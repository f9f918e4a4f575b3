"""Clips to tokens and back: Q-Former, quantizer, losses, search, router, codec."""
