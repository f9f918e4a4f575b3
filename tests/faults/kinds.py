"""Every kind of file that is read: which files, what else they need, and commands that read them.

A new kind is one entry of `KINDS`, and what `toy_files.make` must make for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from toy_files import HOME, SAMPLE

ONE_STEP = ["train.steps=1", "train.batch_size=2", "train.validate_every=0"]
MODEL = ["--model", "run/export"]
RECONSTRUCT = ["-o", "out", *MODEL]
FVD = [*MODEL, "--frames", "12", "--size", "32"]
CACHED = [*FVD, "--cache", "features.sqlite"]
DATA = ["--workers", "1", "--size", "32", "--out", "out/copies"]
CLASSES = ["squares/Left", "squares/Right"]


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Attributes:
        files: patterns below the material; one match is damaged.
        commands: one of them reads it; `{}` stands for the damaged file.
        needs: what else is copied beside it.
    """

    files: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[str, ...] = ()


def _train(stage: str, *words: str) -> tuple[str, ...]:
    return ("train", f"toy/{stage}.yaml", "--run-dir", "out/run", *ONE_STEP, *words)


KINDS = {
    "settings": Kind(
        tuple(f"toy/{name}.yaml" for name in ("features", "proxy", "router", "final", "generator")),
        (("info", "{}"),),
        ("toy", "run", "squares"),
    ),
    "settings of a folder": Kind(
        ("toy/*.yaml",),
        (
            ("plan", "toy"),
            ("pipeline", "toy", "--until", "features"),
            ("pipeline", "toy", "--until", "features"),
            ("search", "toy/search.yaml", "--run-dir", "run/search", "clips=6"),
            ("tokens", "toy/tokens.yaml", "--run-dir", "run/tokens"),
        ),
        ("toy", "run", "squares"),
    ),
    "model": Kind(
        ("run/export/*/config.json", "run/export/*/model.safetensors"),
        (
            ("info", "run/export"),
            ("reconstruct", "videos/clip.mp4", *RECONSTRUCT),
            ("reconstruct", "videos/clip.mp4", *RECONSTRUCT, "--assignment", "threshold:20"),
            ("reconstruct", "videos/clip.mp4", *RECONSTRUCT, "--quality", "1.2"),
            ("sample", "-o", "out", *SAMPLE),
            ("predict", "videos/clip.mp4", "-n", "1", *RECONSTRUCT),
            ("fvd", *CLASSES, *FVD, "--no-cache"),
        ),
        ("run/export", "videos", "squares"),
    ),
    "checkpoint": Kind(
        (
            "run/proxy/checkpoints/step-00000003/*",
            "run/proxy/config.yaml",
            "run/proxy/log.jsonl",
            "run/proxy/checkpoints/step-00000003/state.json",
        ),
        (
            ("train", "toy/proxy.yaml", "--run-dir", "run/proxy", "train.steps=4"),
            ("train", "toy/proxy.yaml", "--run-dir", "run/proxy"),
        ),
        ("run/proxy", "run/cache", "toy", "squares"),
    ),
    "table": Kind(
        ("run/search/*/*",),
        (
            ("search", "toy/search.yaml", "--run-dir", "run/search"),
            ("search", "toy/search.yaml", "--run-dir", "run/search", "clips=8"),
            _train("router"),
        ),
        ("run/search", "run/proxy/model", "run/cache", "toy", "squares"),
    ),
    "tokens": Kind(
        ("run/tokens/*/*",),
        (
            _train("generator"),
            _train("generator"),
            ("tokens", "toy/tokens.yaml", "--run-dir", "run/tokens"),
        ),
        (
            "run/tokens",
            "run/final-wide/model",
            "run/router/model",
            "run/text",
            "run/cache",
            "toy",
            "squares",
        ),
    ),
    "samples": Kind(
        (
            "samples/samples.json",
            "samples/chunks/*",
            "arrays/samples.json",
            "arrays/chunks/*",
            "samples/*.mp4",
            "arrays/*.npz",
        ),
        (
            ("sample", "-o", "samples", *SAMPLE),
            ("sample", "-o", "arrays", "--format", "npz", *SAMPLE),
        ),
        ("samples", "arrays", "run/export"),
    ),
    "clip cache": Kind(
        ("run/cache/*/*",),
        (
            _train("proxy"),
            ("search", "toy/search.yaml", "--run-dir", "out/search", "clips=2"),
        ),
        ("run/cache", "run/proxy/model", "toy", "squares"),
    ),
    "feature cache": Kind(
        ("features.sqlite",), (("fvd", *CLASSES, *CACHED),), ("run/export", "squares")
    ),
    "list": Kind(
        ("squares/*.txt", "k600/val.csv", "webvid/results.csv"),
        (
            ("data", "ucf101", "squares", *DATA),
            ("data", "k600", "k600", *DATA),
            ("data", "webvid", "webvid", *DATA),
            _train("proxy"),
        ),
        ("squares", "k600", "webvid", "toy"),
    ),
    "prepared set": Kind(
        ("prepared/*.json*", "prepared/*.txt", "prepared/*/*.mp4"),
        (("data", "ucf101", "squares", *DATA[:-1], "prepared"),),
        ("prepared", "squares"),
    ),
    "captions": Kind(
        ("captions.csv", "captions.txt"),
        (("text", "train", "{}", "-o", "out/text", "--vocabulary-size", "300"),),
    ),
    "text model": Kind(
        ("run/export/text/*",),
        (("sample", "--text", "a bright clip", "-n", "1", "-o", "out", *MODEL),),
        ("run/export",),
    ),
    "record": Kind(
        ("record.json", "board.json"),
        (
            ("leaderboard", "add", "record.json", "--board", "board.json"),
            ("leaderboard", "show", "--board", "board.json"),
            ("leaderboard", "show", "--board", "board.json", "--format", "html"),
            ("leaderboard", "show", "--board", "board.json", "--format", "md"),
        ),
        ("record.json", "board.json"),
    ),
    "array": Kind(
        ("tensors/clips.npz", "tensors/clips.pt"),
        (("fvd", "squares", "{}", *FVD, "--no-cache"), ("fvd", "{}", "squares", *CACHED)),
        ("run/export", "squares"),
    ),
    "video": Kind(
        ("videos/clip.*",),
        (
            ("reconstruct", "{}", *RECONSTRUCT),
            ("reconstruct", "{}", *RECONSTRUCT, "--allow-damaged"),
            ("predict", "{}", "-n", "1", *RECONSTRUCT),
            ("fvd", "squares", "videos", *FVD, "--no-cache"),
        ),
        ("videos", "run/export", "squares"),
    ),
    "token file": Kind(
        ("tokens/clip.evt",),
        (
            ("show", "{}"),
            ("decode", "{}", "-o", "out/a.mp4", *MODEL),
            ("decode", "{}", "-o", "out/a.mkv", *MODEL, "--allow-damaged"),
            ("decode", "{}", "-o", "out/a.gif", *MODEL, "--start", "1"),
            ("encode", "tokens/sound.mp4", "-o", "{}", *MODEL, "--chunk-clips", "1"),
        ),
        ("tokens", "run/export"),
    ),
    "pictures": Kind(
        ("videos/*/*",),
        (
            ("fvd", "squares", "videos", *FVD, "--no-cache"),
            ("fvd", "squares", "videos", *CACHED),
        ),
        ("videos", "run/export", "squares"),
    ),
    "steps": Kind(
        ("run/steps/*.json",),
        (("pipeline", "toy", "--until", "export", "--force"),),
        ("run", "toy", "squares"),
    ),
    "kernels": Kind(
        (f"{HOME}/**/*.so",), (("sample", "-o", "out", *SAMPLE),), (HOME, "run/export")
    ),
}
