"""Tokens to samples and back: grammar, GPT, attention, cache, engine, conditions, packing."""
