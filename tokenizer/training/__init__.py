"""The trained stages: proxy tokenizer, router, final tokenizer."""
