"""Measurements of trained models: tables, protocols, curves."""
