"""Block-causal attention over packed clips: layout, backends."""
