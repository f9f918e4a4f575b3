"""Film strips of held-out clips, their reconstructions, and samples of the same classes.

    python -m benchmarks.contact_sheet procgen.yaml out/sheet.jpg --model games

A person looks at it and says what moves. Nothing is picked by its looks: clips are the first of
each class's held-out list from `--skip` on, samples those of `--seed`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from evatok.core.config import load_config
from evatok.core.errors import EvatokError
from evatok.generate.samples import guidance_of, labels_of, sample_labels
from evatok.hub import load
from evatok.measure.clip_sets import to_bytes
from evatok.measure.evaluate import DataFile
from evatok.report.gallery import contact_sheet, write_picture
from generator.inference.requests import SamplingConfig
from tokenizer.coding.refined import refine
from video.dataset import ClipSampler


def main() -> None:
    """Read the command line, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="settings file with the data, of one set")
    parser.add_argument("output", type=Path, help="picture to write, .png or .jpg")
    parser.add_argument("--model", default="games")
    parser.add_argument("--classes", default="", help="with commas between; all if empty")
    parser.add_argument("--assignment", default="router")
    parser.add_argument("--refine", type=int, default=0, help="a row more: after so many steps")
    parser.add_argument("--guidance", type=float, default=None)
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--skip", type=int, default=0, help="clips of each class")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--no-samples", action="store_true")
    words = parser.parse_args()
    try:
        draw(words)
    except EvatokError as error:
        parser.error(str(error))


def draw(words: argparse.Namespace) -> None:
    """Make the sheet, and print a line of JSON: its classes, and tokens of both kinds."""
    models = load(words.model)
    sampler = ClipSampler(load_config(DataFile, words.data).data, "test")
    if len(sampler.sources) > 1:
        raise EvatokError(f"{words.data} has {len(sampler.sources)} sets; name a file with one")
    classes = [name for name in words.classes.split(",") if name] or sampler.class_names
    of_class: dict[str, list] = {name: [] for name in classes}
    for window in sampler.eval_clips(None, "all", 0):
        name = sampler.class_names[sampler.label(window)]
        if name in of_class:
            of_class[name].append(window)
    if missing := [name for name, found in of_class.items() if len(found) <= words.skip]:
        raise EvatokError(f"no held-out clip {words.skip} of {', '.join(missing)}")
    clips = sampler.load([of_class[name][words.skip] for name in classes])[0]
    told: dict[str, object] = {"classes": classes, "refine_steps": words.refine}
    with torch.inference_mode():
        tokens = models.final.encode(clips, models.assigner(words.assignment)(clips))
        kinds = {"original": clips, "reconstruction": models.final.decode(tokens).float()}
        if words.refine:
            better = refine(models.final, clips, tokens, words.refine)
            kinds["refined"] = models.final.decode(better).float()
        told["reconstruction"] = tokens.lengths.tolist()
        if not words.no_samples:
            labels, indices = labels_of(models, classes)
            settings = SamplingConfig(guidance=guidance_of(models, words.guidance))
            kinds["sample"], tokens = sample_labels(models, labels, indices, words.seed, settings)
            told["sample"] = tokens.lengths.tolist()
    sheet = contact_sheet(
        classes, {name: to_bytes(many) for name, many in kinds.items()}, words.columns
    )
    write_picture(sheet, words.output)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
