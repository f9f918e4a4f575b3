"""A stage → trained weights: settings, schedules, optimisers, checkpoints and the one loop."""
