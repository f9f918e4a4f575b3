"""Files of a training run: its folder, log and checkpoints."""
