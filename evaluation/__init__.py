"""From clips to numbers: distances, feature networks, per-clip quality, protocols."""
