"""Read what may be damaged: records, arrays, weights, settings."""
