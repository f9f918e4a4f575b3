"""Feature networks and frozen encoders, by name."""
