"""Files and folders appear whole or not at all, and nobody sweeps what another is writing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evatok.core import files
from evatok.core.errors import EvatokError
from evatok.core.files import PARTIAL, atomic_file, atomic_folder, naming, sweep, write_text


def ended_process() -> int:
    """The number of a process that runs no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def partial_of(pid: int, suffix: str = "", host: str | None = None) -> str:
    return f".{'0' * 12}.{host or files._host()}.{pid}.0.partial{suffix}"


def test_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.mp4"
    with atomic_file(path) as partial:
        assert partial.parent == path.parent and partial.suffix == ".mp4" and partial != path
        assert PARTIAL.fullmatch(partial.name)
        partial.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new" and os.listdir(path.parent) == ["a.mp4"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_fails_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(error), atomic_file(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]
    with pytest.raises(error), atomic_folder(tmp_path / "folder") as partial:
        (partial / "x").write_text("half")
        raise error
    assert os.listdir(tmp_path) == ["a.txt"]


def test_any_name_that_the_disk_takes(tmp_path: Path) -> None:
    """The partial name is short, whatever the final one is; bytes of no encoding fit too."""
    for name in ("x" * 251 + ".mp4", os.fsdecode(b"caf\xe9.txt"), "é" * 120, ".hidden", "a b.c d"):
        write_text(tmp_path / name, name if name.isprintable() else "")
        assert (tmp_path / name).is_file()
    assert len(os.listdir(tmp_path)) == 5


def test_text_of_another_encoding_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvatokError, match=r"a\.txt: .*caf.*is not UTF-8"):
        write_text(tmp_path / "a.txt", "caf\udce9")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_mode_is_the_umask_s(tmp_path: Path, umask: int, mode: int) -> None:
    """safetensors writes files that others cannot read."""
    old = os.umask(umask)
    try:
        tensors = {"x": torch.zeros(2)}
        with atomic_file(tmp_path / "model.safetensors") as partial:
            save_file(tensors, partial)
        with atomic_folder(tmp_path / "folder") as partial:
            save_file(tensors, partial / "model.safetensors")
    finally:
        os.umask(old)
    for folder in (tmp_path, tmp_path / "folder"):
        assert (folder / "model.safetensors").stat().st_mode & 0o777 == mode


def test_file_and_folder_are_forced_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content before its name, then the name; a folder with all that is in it."""
    events: list[tuple[str, str]] = []
    sync, replace, rename = files.sync, os.replace, os.rename

    def note(kind: str, path: object) -> None:
        name = Path(str(path)).name
        events.append((kind, "partial" if PARTIAL.fullmatch(name) else name))

    monkeypatch.setattr(files, "sync", lambda p: (note("sync", p), sync(p)))
    monkeypatch.setattr(os, "replace", lambda a, b: (note("move", b), replace(a, b)))
    monkeypatch.setattr(os, "rename", lambda a, b: (note("move", b), rename(a, b)))
    here = tmp_path.name
    write_text(tmp_path / "a", "text")
    assert events == [("sync", "partial"), ("move", "a"), ("sync", here)]
    events.clear()
    with atomic_folder(tmp_path / "b") as partial:
        (partial / "x").write_text("text")
    assert events == [("sync", "x"), ("sync", "partial"), ("move", "b"), ("sync", here)]


def test_sweeping_takes_only_what_nobody_writes(tmp_path: Path) -> None:
    ended = ended_process()
    rubbish = [partial_of(ended), partial_of(ended, ".mp4"), partial_of(os.getpid())]
    for name in rubbish[:2]:
        (tmp_path / name).write_text("half")
    (tmp_path / rubbish[2]).mkdir()  # of an earlier process with our number
    kept = [partial_of(os.getppid()), partial_of(ended, host="1" * 8), ".x.partial", "a.mp4"]
    for name in kept:
        (tmp_path / name).write_text("whole or not ours")
    with atomic_file(tmp_path / "mine") as partial:
        partial.write_text("mine")
        sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "mine"])
    sweep(tmp_path / "absent")


def test_the_next_writer_sweeps(tmp_path: Path) -> None:
    (tmp_path / partial_of(ended_process(), ".parquet")).write_text("half")
    write_text(tmp_path / "a", "")
    assert os.listdir(tmp_path) == ["a"]


def test_two_processes_make_one_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(EvatokError, match=r"set was made by another process meanwhile"),
        atomic_folder(tmp_path / "set") as late,
    ):
        (late / "x").write_text("late")
        with atomic_folder(tmp_path / "set") as first:
            (first / "x").write_text("first")
    with atomic_folder(tmp_path / "set", keep=True) as late:
        (late / "x").write_text("late")
    assert (tmp_path / "set" / "x").read_text() == "first"
    assert os.listdir(tmp_path) == ["set"]


def test_disk_full_names_the_file(tmp_path: Path, root: Path) -> None:
    """Libraries tell it in six ways; here a limit on file sizes plays the full disk."""
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("full_disk.py"), tmp_path],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    names = ("text", "array", "raw", "weights", "table", "video")
    lines = run.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(names), run.stdout + run.stderr
    assert all(line.split()[2] == line.split()[0] for line in lines), lines
    assert not os.listdir(tmp_path)


def test_errors_of_reading_keep_their_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as info, naming(tmp_path / "output"):
        (tmp_path / "input").read_text()
    assert info.value.filename == str(tmp_path / "input")
