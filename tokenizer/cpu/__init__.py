"""A Q-Former layer in training as compiled C code, for processors that multiply tiles (AMX)."""
