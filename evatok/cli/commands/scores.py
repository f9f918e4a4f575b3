"""Commands that make numbers: distances between anyone's videos, and protocols run on a model."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from evatok.cli.errors import message_for_user
from evatok.cli.options import AsJson, Device, Guidance, Model, Refine, Trust, eprint
from evatok.cli.output import show
from evatok.core.errors import EvatokError

if TYPE_CHECKING:
    from evaluation.scoring.clips import Cut
    from evaluation.scoring.feature_cache import FeatureCache
    from evaluation.scoring.presets import Preset

Metrics = Annotated[
    str, typer.Option(help="fvd, fvd-infinity, kvd, jedi, precision, recall, density, coverage")
]
RecordFile = Annotated[
    Path | None, typer.Option("--record", help="Also a record for the leaderboard, one a network.")
]
Name = Annotated[str, typer.Option(help="What the record calls the fake side.")]
CacheFile = Annotated[
    Path | None, typer.Option("--cache", help="Of features. Default: ~/.cache/evatok.")
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Make every feature anew; keep none.")]


Features = Annotated[
    str, typer.Option(help="As nano,i3d or i3d-tats:FILE. Default: the preset's, or nano.")
]
PresetName = Annotated[
    str,
    typer.Option("--preset", help="larp-ucf, larp-k600, magvit-k600, tats-2048 or styleganv-2048."),
]
Frames = Annotated[int | None, typer.Option(min=1, help="Of a clip. Default: 16.")]
Size = Annotated[
    int | None, typer.Option(min=1, help="Pixels to which both sides are cut. Default: 128.")
]
Windows = Annotated[
    str | None,
    typer.Option(help="Of a video: first, random, all, or so many (drawn). Default: first."),
]
Count = Annotated[int | None, typer.Option(min=2, help="Clips drawn on each side. Default: all.")]
DrawSeed = Annotated[int | None, typer.Option(min=0, help="Of the draw. Default: 42.")]
Resize = Annotated[
    str | None,
    typer.Option(help="bytes, or float as LARP: not rounded. Default: the preset's, or bytes."),
]


def cut_of(preset: Preset | None, **given: int | str | None) -> Cut:
    """The cut of a preset, or the usual one, with what the options say instead."""
    from evaluation.scoring.clips import Cut
    from video.clips import Resizing, window_rule

    said = {key: value for key, value in given.items() if value is not None}
    if "window" in said:
        said["window"] = window_rule(str(said["window"]))
    if said.get("resize", "bytes") not in get_args(Resizing):
        raise EvatokError(f"resize {said['resize']!r} is none of {', '.join(get_args(Resizing))}")
    base = Cut() if preset is None else preset.cut
    return Cut.model_validate(base.model_dump() | said)


def preset_for(name: str, *sides: Path) -> Preset | None:
    """The preset of that name, if one is named, which these sides fit."""
    from evaluation.scoring.presets import preset

    chosen = preset(name) if name else None
    if chosen is not None:
        for side in sides:
            chosen.check(side)
    return chosen


def open_cache(path: Path | None, without: bool) -> AbstractContextManager[FeatureCache | None]:
    """Open the cache that the options ask for, to be closed by a `with`."""
    from evaluation.scoring.feature_cache import FeatureCache, default_cache

    if without:
        if path is not None:
            raise EvatokError("--cache and --no-cache contradict each other")
        return nullcontext()
    try:
        return FeatureCache(path or default_cache())
    except (OSError, EvatokError) as error:
        reason = message_for_user(error) or error
        raise EvatokError(f"{reason}: give --cache FILE, or --no-cache") from error


def fvd_command(
    real: Annotated[
        Path, typer.Argument(help="Folder of videos or frames, video, array, or statistics.")
    ],
    fake: Annotated[Path, typer.Argument(help="Likewise.")],
    features: Features = "",
    preset: PresetName = "",
    frames: Frames = None,
    size: Size = None,
    window: Windows = None,
    count: Count = None,
    seed: DrawSeed = None,
    resize: Resize = None,
    model: Model = "nano",
    unbiased: Annotated[
        bool, typer.Option("--unbiased", help="Covariance by n − 1, not n.")
    ] = False,
    metrics: Metrics = "fvd",
    record: RecordFile = None,
    name: Name = "",
    cache: CacheFile = None,
    no_cache: NoCache = False,
    trust: Trust = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Fréchet video distance, and others, between two sets of anyone's videos; torchrun shares it.

    \b
    Example:
        evatok fvd data/arcade/Frogger out/samples --features nano --size 64
    """
    import time

    import torch

    from evaluation.scoring.records import write_records
    from evaluation.scoring.score import records_of, score_folders
    from evaluation.scoring.statistics import is_statistics, network_of, score_statistics
    from evatok.core.compute.devices import resolve_device
    from evatok.core.files import check_writable
    from evatok.core.paths import refuse_overwrite
    from evatok.core.processes.distributed import joined
    from evatok.hub import feature_networks

    started = time.monotonic()
    chosen = preset_for(preset, real, fake)
    cut = cut_of(
        chosen, num_frames=frames, size=size, window=window, count=count, seed=seed, resize=resize
    )
    if record is not None:
        refuse_overwrite([record], [real, fake, *([cache] if cache else [])])
        check_writable(record)
    files = [side for side in (real, fake) if is_statistics(side)]
    usual = "" if chosen is None else chosen.network
    names = features or (network_of(files, usual) if files else usual or "nano")
    networks = feature_networks(names, model, trust, resolve_device(device))
    wanted = [word for word in metrics.split(",") if word]
    if files and (len(networks) != 1 or wanted != ["fvd"]):
        raise EvatokError(
            f"{files[0]} is the mean and covariance of one network's features: "
            "give one network, and no other metric than fvd"
        )
    biased = not unbiased and (chosen is None or chosen.biased)
    with joined(torch.device("cpu")) as process, open_cache(cache, no_cache) as opened:
        if files:
            result = score_statistics(real, fake, networks[0], cut=cut, biased=biased, cache=opened)
        else:
            result = score_folders(
                real,
                fake,
                networks,
                cut=cut,
                biased=biased,
                metrics=wanted,
                cache=opened,
                with_interval=record is not None,
            )
    if process.rank:
        return
    if record is not None:
        seconds = round(time.monotonic() - started, 1)
        rows = records_of(result, networks, name or fake.name, preset or "folder", seconds=seconds)
        write_records(record, rows)
    show(result, as_json)


def statistics_command(
    real: Annotated[Path, typer.Argument(help="Folder of videos or frames, video, or array.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File: .npz, or .pt of torch.")],
    features: Features = "",
    preset: PresetName = "",
    frames: Frames = None,
    size: Size = None,
    window: Windows = None,
    count: Count = None,
    seed: DrawSeed = None,
    resize: Resize = None,
    model: Model = "nano",
    cache: CacheFile = None,
    no_cache: NoCache = False,
    trust: Trust = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Mean and covariance of a set's features, a side for `evatok fvd`; torchrun shares it.

    \b
    Example:
        evatok statistics data/real -o real.npz --features i3d
        evatok fvd real.npz out/samples
    """
    import torch

    from evaluation.scoring.statistics import check_suffix, statistics_of
    from evatok.core.compute.devices import resolve_device
    from evatok.core.files import check_writable
    from evatok.core.paths import refuse_overwrite
    from evatok.core.processes.distributed import joined
    from evatok.hub import feature_networks

    check_suffix(output)
    refuse_overwrite([output], [real, *([cache] if cache else [])])
    check_writable(output)
    chosen = preset_for(preset, real)
    cut = cut_of(
        chosen, num_frames=frames, size=size, window=window, count=count, seed=seed, resize=resize
    )
    names = features or ("nano" if chosen is None else chosen.network)
    networks = feature_networks(names, model, trust, resolve_device(device))
    if len(networks) != 1:
        raise EvatokError(f"a file holds statistics of one network, not {names}: name one")
    with joined(torch.device("cpu")) as process, open_cache(cache, no_cache) as opened:
        result = statistics_of(real, output, networks[0], cut=cut, cache=opened)
    if process.rank == 0:
        show(result, as_json)


def compare_command(
    real: Annotated[Path, typer.Argument(help="Folder of videos or frames, video, .npz or .pt.")],
    fakes: Annotated[list[Path], typer.Argument(help="Two sets or more, likewise.")],
    features: Annotated[str, typer.Option(help="As nano,i3d or i3d-tats:FILE.")] = "nano",
    frames: Annotated[int, typer.Option(min=1, help="Of a clip.")] = 16,
    size: Annotated[int, typer.Option(min=1, help="Pixels to which every set is cut.")] = 128,
    window: Windows = None,
    model: Model = "nano",
    cache: CacheFile = None,
    no_cache: NoCache = False,
    trust: Trust = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Rank several sets by their distance to the real one, with chance; torchrun shares it.

    \b
    Example:
        evatok compare data/real out/a out/b out/c --features i3d
    """
    import torch

    from evaluation.scoring.compare import compare_folders
    from evatok.core.compute.devices import resolve_device
    from evatok.core.processes.distributed import joined
    from evatok.hub import feature_networks

    if len(fakes) < 2:
        raise EvatokError("one set is compared with nothing: give two or more, or `evatok fvd`")
    cut = cut_of(None, num_frames=frames, size=size, window=window, resize=None)
    with joined(torch.device("cpu")) as process, open_cache(cache, no_cache) as opened:
        networks = feature_networks(features, model, trust, resolve_device(device))
        result = compare_folders(real, fakes, networks, cut=cut, cache=opened)
    if process.rank:
        return
    if not as_json:  # each pair's row stands in the verdicts, as far as it concerns the nearest
        del result["differences"], result["cut"]
    show(result, as_json)


def evaluate_command(
    protocol: Annotated[
        str, typer.Argument(help="NAME-rfvd, NAME-gfvd or NAME-fp; NAME: arcade, ucf101, k600.")
    ],
    data: Annotated[Path, typer.Option(help="Settings file with the data.")] = Path("nano/data"),
    model: Model = "nano",
    features: Annotated[str, typer.Option(help="nano, i3d, or nano,i3d.")] = "nano",
    count: Annotated[
        int | None, typer.Option(min=2, help="Clips, drawn as papers do. Default: the protocol's.")
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            help="rfvd: first, random, all or so many of each video, instead of the protocol's."
        ),
    ] = None,
    assignment: Annotated[
        str, typer.Option(help="rfvd: router, router:1.65, uniform:32, 32,16,8,8 …")
    ] = "router",
    refine: Refine = 0,
    guidance: Guidance = None,
    seed: Annotated[int, typer.Option(min=0, help="gfvd, fp: of the samples.")] = 0,
    still: Annotated[
        bool, typer.Option("--still", help="rfvd, fp: beside it, of a frame that stands still.")
    ] = False,
    metrics: Metrics = "fvd",
    record: RecordFile = None,
    name: Name = "",
    cache: CacheFile = None,
    no_cache: NoCache = False,
    trust: Trust = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Run a protocol on a model: reconstruct, sample or predict, then score; resumable and shared.

    \b
    Example:
        evatok evaluate arcade-rfvd --features nano,i3d --count 1000 --record out/rfvd.json
    """
    import torch

    from evatok.core.compute.devices import resolve_device
    from evatok.core.processes.distributed import joined
    from evatok.hub import feature_networks
    from evatok.measure.evaluate import evaluate
    from evatok.measure.protocol_sides import EvaluationSettings
    from video.clips import window_rule

    settings = EvaluationSettings(
        protocol=protocol,
        data=data,
        model=model,
        count=count,
        window=None if window is None else window_rule(window),
        assignment=assignment,
        refine_steps=refine,
        guidance=guidance,
        seed=seed,
        device=device,
        still=still,
    )
    with joined(torch.device("cpu")) as process, open_cache(cache, no_cache) as opened:
        result = evaluate(
            settings,
            feature_networks(features, model, trust, resolve_device(device)),
            metrics=[word for word in metrics.split(",") if word],
            cache=opened,
            record=record,
            name=name,
            say=eprint,
        )
    if process.rank == 0:
        show(result, as_json)
