"""Several processes: launched together, pooled, kept apart by locks."""
