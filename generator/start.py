"""Starting a generator from a trained one: tokens keep their meaning, not their place.

What both vocabularies have is copied row by row: codes, lengths, specials, classes of one name, and
pieces of text where both read it with the same text model. A class that the source does not know
begins as its "any class", the token of classifier-free guidance, so its first samples are drawn
from all that the source has learned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evatok.core.errors import EvatokError
from generator.gpt import GPT


@torch.no_grad()
def start_from(model: GPT, source: GPT) -> None:
    """Fill a generator with what a trained one knows.

    Args:
        model: to be filled.
        source: of the same size, codes and levels. Its classes, text, given frames, number of
            blocks and dropout may be others.

    Raises:
        EvatokError: it differs in more.
    """
    ours, theirs = model.size, source.size.model_copy(update={"dropout": model.size.dropout})
    different = [
        f"{name} {before!r}, not {now!r}"
        for name, now, before in (
            *((f"model.{name}", getattr(ours, name), getattr(theirs, name))
              for name in type(ours).model_fields),
            ("codes", model.vocabulary.codebook_size, source.vocabulary.codebook_size),
            ("levels", list(model.vocabulary.levels), list(source.vocabulary.levels)),
        )
        if now != before
    ]  # fmt: skip
    if different:
        raise EvatokError(f"start_from: that generator has {'; '.join(different)}")
    rows = source_rows(model, source)
    known = (rows >= 0)[:, None]
    state = source.state_dict()
    for name in ("embedding.weight", "head.weight"):
        made = model.get_parameter(name).cpu()
        state[name] = torch.where(known, state[name].cpu()[rows.clamp_min(0)].to(made.dtype), made)
    model.load_state_dict(state)


def source_rows(model: GPT, source: GPT) -> Tensor:
    """(V,) int64: the token of the source that each token begins as; −1 for none."""
    ours, theirs = model.vocabulary, source.vocabulary
    rows = torch.full((ours.size,), -1)
    shared = ours.separator + 1  # codes, lengths and specials: the same ids in both
    rows[:shared] = torch.arange(shared)
    places = {name: theirs.class_token(label) for label, name in enumerate(theirs.class_names)}
    for label, name in enumerate(ours.class_names):
        rows[ours.class_token(label)] = places.get(name, theirs.null)
    if ours.num_text and theirs.num_text:
        rows[ours.text] = theirs.text
        if model.text is not None and model.text == source.text:
            pieces = torch.arange(1, 1 + ours.num_text)
            rows[ours.text + pieces] = theirs.text + pieces
    return rows
