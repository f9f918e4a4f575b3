"""Token files: videos of any size and length as the tokens of one tokenizer."""
