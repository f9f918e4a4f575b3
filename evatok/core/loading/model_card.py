"""Model cards of the Hugging Face hub: the README.md beside weights."""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import ModelCard, ModelCardData

LIBRARY, LICENCE = "evatok", "mit"
NO_NUMBERS = "No measurement came with these weights."


def card(title: str, data: ModelCardData, body: Sequence[str]) -> ModelCard:
    """Return a model card.

    Args:
        title: of the page.
        data: its machine-readable head: library, licence, pipeline tag, tags.
        body: paragraphs in Markdown; empty ones are left out.
    """
    text = "\n\n".join(part.strip() for part in body if part.strip())
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{text}\n")
