"""What a training keeps on disk: its folder, log and checkpoints."""
