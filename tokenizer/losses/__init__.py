"""What the tokenizers are trained on."""
