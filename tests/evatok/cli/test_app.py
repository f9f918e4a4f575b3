"""The command line: help with an example, JSON last, bad input in one line with status 2."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command

from evatok.cli.app import app, main
from video.writing import write_video

Square = Callable[[int, int, int, int], np.ndarray]
GROUP: Any = get_command(app)
COMMANDS = sorted(
    f"{name} {inner}" if inner else name
    for name, command in GROUP.commands.items()
    for inner in getattr(command, "commands", [""])
)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    capsys.readouterr()
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_commands() -> None:
    assert COMMANDS == [
        "app", "arcade", "compare", "curves", "data", "decode", "demo", "encode",
        "evaluate",
        "export", "export-llama", "fvd", "import-llama", "info", "init", "leaderboard add",
        "leaderboard show",
        "pipeline", "plan", "predict", "reconstruct", "sample", "search", "show", "statistics",
        "text train",
        "tokens", "train", "weights",
    ]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_parses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = command.split()
    status, out, err = run(capsys, *path, "--help")
    assert status == 0 and err == "" and "--json" in out
    example = out.split("Example:")[1].strip().splitlines()[0]
    words = shlex.split(example)
    assert words[: 1 + len(path)] == ["evatok", *path]
    parser: Any = get_command(app)
    for name in path:
        parser = parser.commands[name]
    parser.make_context(command, words[1 + len(path) :])  # raises where the example is wrong


def test_nothing_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys)
    assert status == 0 and "reconstruct" in out


def test_reconstruct_sample_predict_fvd(
    toy_dir: Path, square: Square, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From files to samples to a distance, by commands alone."""
    videos = [tmp_path / "real" / f"{seed}.mp4" for seed in range(2)]
    for seed, path in enumerate(videos):
        write_video(path, square(20, 40, 50, seed), 10)
    model = ("--model", toy_dir, "--json")
    crop = ("--fit", "crop", *model)

    def result(*words: object) -> dict:  # type: ignore[type-arg]
        status, out, err = run(capsys, *words)
        assert status == 0, err
        return json.loads(out.splitlines()[-1])

    done = result("reconstruct", *videos, "-o", tmp_path / "r", "--assignment", "2,1,1,4", *crop)
    assert [clip["assignment"] for clip in done["files"][0]["clips"]] == [[2, 1, 1, 4], [2]]
    assert set(done["files"][0]) >= {"frames", "psnr", "tokens", "clips"}
    uniform = ("--assignment", "uniform:4")  # 2 videos of 5 blocks, in 4 tiles or one square
    assert result("reconstruct", *videos, "-o", tmp_path / "u", *uniform, *crop)["tokens"] == 40
    assert result("reconstruct", *videos, "-o", tmp_path / "t", *uniform, *model)["tokens"] == 160
    done = result("sample", "--class", "Left", "-n", 2, "-o", tmp_path / "s", "--plain", *model)
    assert done["num_samples"] == 2 and len(list((tmp_path / "s").glob("*.mp4"))) == 2
    done = result("predict", videos[0], "-o", tmp_path / "p", "-n", 1, *model)
    assert len(done["predictions"]) == 1
    done = result("info", toy_dir, "--json")
    assert [row["part"] for row in done["parts"]] == [
        "features", "proxy", "router", "final", "generator",
    ]  # fmt: skip
    assert done["final"]["levels"] == [1, 2, 4] and done["final"]["assignments"] == 81
    assert done["generator"]["vocabulary"] == 16 + 3 + 3 + 2
    for part in done["parts"]:
        counts = [n for key, n in done[part["part"]].items() if key in MODULES]
        assert sum(counts) == part["parameters"]


MODULES = {
    "layers", "project", "standardise", "classify", "patch_in", "encoder_places", "query_map",
    "encoder", "code_in", "quantizer", "code_out", "decoder_places", "start_map", "decoder",
    "patch_head", "norm_out", "head", "embedding", "norm", "other",
}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("nosuch", "No such command"),
        ("reconstruct no.mp4 -o {out} --model {toy}", "no.mp4"),
        ("reconstruct {text} -o {out} --model {toy}", "text.mp4"),
        ("reconstruct {empty} -o {out} --model {toy}", "empty.mp4"),
        ("reconstruct {video} -o {out} --model nothing", "nothing"),
        ("reconstruct {video} -o {out} --model {toy} --assignment 3", "3"),
        ("reconstruct {video} -o {out} --model {toy} --assignment uniform:3", "[3] are not levels"),
        ("reconstruct {video} -o {out} --model {toy} --assignment 1,2", "2 levels"),
        ("reconstruct {video} -o {out} --model {toy} --features no", "no feature network 'no'"),
        ("reconstruct {video}", "--output"),
        ("sample --class Nobody -o {out} --model {toy}", "no class Nobody"),
        ("sample -n 0 -o {out} --model {toy}", "at least 1"),
        ("sample --seed -1 -o {out} --model {toy}", "'--seed'"),
        ("sample --guidance nan -o {out} --model {toy}", "--guidance nan: give a finite number"),
        ("sample --guidance inf -o {out} --model {toy}", "--guidance inf"),
        ("sample --temperature inf -o {out} --model {toy}", "--temperature inf"),
        ("sample --temperature nan -o {out} --model {toy}", "'--temperature'"),
        ("sample --length-bias nan -o {out} --model {toy}", "--length-bias nan"),
        ("sample --top-p nan -o {out} --model {toy}", "'--top-p'"),
        ("sample --length-bias 1e300 -o {out} --model {toy}", "--length-bias 1e+300 is beyond"),
        ("sample --guidance 1e308 -o {out} --model {toy}", "--guidance 1e+308 is beyond"),
        ("encode {video} -o {out} --start 1e300 --model {toy}", "--start 1e+300 is beyond"),
        ("encode http://host/x.mp4 -o {out} --model {toy}", "http://host/x.mp4: addresses are"),
        ("sample -n 1000000000 -o {out} --model {toy}", "--count 1000000000 is beyond"),
        ("sample -n 1e9 -o {out} --model {toy}", "valid integer"),
        ("sample --chunk 1000000000 -o {out} --model {toy}", "--chunk"),
        ("sample --seed 9223372036854775808 -o {out} --model {toy}", "--seed 92"),
        ("sample --max-tokens 100000000000000000000 -o {out} --model {toy}", "--max-tokens 1"),
        ("sample --lengths 99999999999999999999,1 -o {out} --model {toy}", "too large"),
        ("predict {video} -n 5000 -o {out} --model {toy}", "--count 5000 is beyond 4096"),
        ("predict {video} --frames 1000000000 -o {out} --model {toy}", "--frames 1000000000"),
        ("fvd {here} {here} --size 100000 --model {toy}", "--size 100000 is beyond 8192"),
        ("fvd {here} {here} --frames 1000000000 --model {toy}", "--frames 1000000000 is"),
        ("reconstruct {video} -o {out} --model {toy} --quality inf", "--quality inf"),
        ("reconstruct {video} -o {out} --model {toy} --assignment threshold:nan", "finite"),
        ("reconstruct {video} -o {out} --model {toy} --assignment router:nan", "finite"),
        ("plan {here} --mfu nan", "--mfu nan"),
        ("sample --device gpu -o {out} --model {toy}", "device 'gpu': give auto, cpu, cuda"),
        ("sample --graphs -o {out} --model {toy}", "CUDA graphs need a GPU"),
        ("sample --weights int4 -o {out} --model {toy}", "weights 'int4': one of float32"),
        ("predict {video} -o {out} --model {toy} --start 19", "starts from 5"),
        ("predict {text} -o {out} --model {toy}", "text.mp4"),
        ("fvd no-such-folder {here} --model {toy}", "no-such-folder"),
        ("fvd {here} {here} --window last --model {toy}", "window 'last'"),
        ("info no-such-model", "no-such-model"),
        ("train no-such.yaml", "no-such.yaml"),
        ("train {text}", "text.mp4"),
        ("train {unknown}", "'cook'"),
        ("search {unknown}", "stage"),
        ("pipeline no-such-folder", "no-such-folder"),
        ("demo -o {out} --model nothing", "nothing"),
        ("arcade {out} --size 31", "31"),
        ("arcade {out} --games no_such_game", "no_such_game"),
    ],
)
def test_bad_input_is_one_line(
    words: str,
    part: str,
    toy_dir: Path,
    square: Square,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = tmp_path / "files"
    write_video(here / "video.mp4", square(20, 32, 32, 0), 10)
    (here / "text.mp4").write_text("just text")
    (here / "empty.mp4").touch()
    (here / "unknown.yaml").write_text("stage: cook\n")
    names = {name: here / f"{name}.mp4" for name in ("video", "text", "empty")}
    out = tmp_path / "out"
    text = words.format(out=out, toy=toy_dir, here=here, unknown=here / "unknown.yaml", **names)
    status, shown, err = run(capsys, *shlex.split(text))
    assert status == 2 and shown == ""
    lines = [line for line in err.splitlines() if line.startswith("evatok: ")]
    assert len(lines) == 1 and part in lines[0], err
    assert "Traceback" not in err and not out.exists()


def test_mistakes_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_name: str) -> None:
        int("not a number")

    monkeypatch.setattr("evatok.plan.info.describe", broken)
    with pytest.raises(ValueError, match="invalid literal"):
        main(["info", "nano"])


def test_module_runs_and_answers_at_once() -> None:
    """`python -m evatok`, without importing torch for --help."""
    code = "import sys, evatok.cli.app as c; c.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
