"""Feature networks: one file each; a score always carries the name of its network."""
