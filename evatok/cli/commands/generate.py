"""Commands that make clips: of a class, and of the first frames of a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from evatok.cli.options import (
    AllowDamaged,
    AsJson,
    Bar,
    Device,
    Guidance,
    LengthBias,
    Lengths,
    MaxTokens,
    Model,
    Output,
    Plain,
    Seed,
    Temperature,
    TopK,
    TopP,
    budget_of,
)
from evatok.cli.output import show
from evatok.core.errors import EvatokError


def sample_command(
    output: Output,
    class_names: Annotated[
        list[str] | None, typer.Option("--class", help="A class, again for more; all by default.")
    ] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option("--text", help="A caption instead of classes, again for more."),
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", help="Clips of each.")] = 16,
    seed: Seed = 0,
    guidance: Guidance = None,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    max_tokens: MaxTokens = None,
    lengths: Lengths = "",
    length_bias: LengthBias = 0.0,
    model: Model = "nano",
    weights: Annotated[
        str, typer.Option(help="float32, bfloat16 or int8: rounded weights are faster to read.")
    ] = "float32",
    device: Device = "auto",
    graphs: Annotated[
        bool, typer.Option("--graphs", help="Replay each step as a CUDA graph: small batches.")
    ] = False,
    file_format: Annotated[
        Literal["mp4", "npz"],
        typer.Option("--format", help="A file a clip, or uint8 arrays, a file a chunk."),
    ] = "mp4",
    chunk: Annotated[int, typer.Option(min=1, help="Clips that are generated together.")] = 64,
    plain: Plain = False,
    as_json: AsJson = False,
) -> None:
    """Generate clips of a class, or of what a text says.

    Of classes: the same command again goes on where a killed one stopped; under torchrun the
    processes share the clips, and the files are the same whatever their number.

    \b
    Example:
        evatok sample --class Frogger -n 16 --seed 0 -o out/samples
        evatok sample --text "a bright clip of Frogger with much motion" -n 8 -o out/samples
    """
    from evatok.core.compute.devices import resolve_device
    from evatok.core.processes.distributed import rank_from_environment
    from evatok.generate.prompts import text_files
    from evatok.generate.sample_set import sample_set
    from evatok.generate.samples import guidance_of
    from evatok.hub import load
    from generator.inference.optimize import weights_of
    from generator.inference.requests import SamplingConfig

    budget = budget_of(max_tokens, lengths, length_bias)
    process = rank_from_environment()
    models = load(model, resolve_device(device))
    settings = SamplingConfig(
        guidance=guidance_of(models, guidance),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        budget=budget,
    )
    if (weights, graphs) != ("float32", False):
        models.sample_with(weights_of(weights), graphs)
    if texts and class_names:
        raise EvatokError("--class and --text: give one of the two, a text can name its class")
    if texts:
        if process.world > 1 or file_format != "mp4":
            raise EvatokError("--text writes mp4 files with one process")
        show(text_files(models, texts, count, seed, settings, output, plain=plain), as_json)
        return
    with Bar("sampling") as bar:
        result = sample_set(
            models,
            class_names or (),
            count,
            seed,
            settings,
            output,
            format=file_format,
            plain=plain,
            chunk=chunk,
            process=process,
            progress=bar,
        )
    show(result, as_json)


def predict_command(
    file: Annotated[Path, typer.Argument(help="A video.")],
    output: Output,
    count: Annotated[int, typer.Option("-n", "--count", help="Predictions.")] = 4,
    frames: Annotated[
        int | None,
        typer.Option(min=1, help="Of a prediction, any number; default: those of a clip."),
    ] = None,
    start: Annotated[int, typer.Option(min=0, help="First given frame.")] = 0,
    seed: Seed = 0,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    max_tokens: MaxTokens = None,
    lengths: Lengths = "",
    length_bias: LengthBias = 0.0,
    model: Model = "nano",
    device: Device = "auto",
    plain: Plain = False,
    allow_damaged: AllowDamaged = False,
    as_json: AsJson = False,
) -> None:
    """Generate what follows the first frames of a video.

    More frames than a clip has are made window by window: the last frames of one are the first of
    the next. Limits on tokens are those of each window.

    \b
    Example:
        evatok predict holiday.mp4 -o out/predict -n 4 --frames 48
    """
    from evatok.core.compute.devices import resolve_device
    from evatok.generate.samples import predict_file
    from evatok.hub import load
    from generator.inference.requests import SamplingConfig

    settings = SamplingConfig(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        budget=budget_of(max_tokens, lengths, length_bias),
    )
    with Bar("predicting") as bar:
        result = predict_file(
            load(model, resolve_device(device)),
            file,
            count,
            seed,
            settings,
            output,
            num_frames=frames,
            start=start,
            plain=plain,
            allow_damaged=allow_damaged,
            progress=bar,
        )
    show(result, as_json)
