"""Signals and streams: one line, the right exit status, never a traceback."""

from __future__ import annotations

import errno
import os
import pickle
import re
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from evatok.cli.app import main
from evatok.cli.errors import message_for_user
from evatok.cli.process import is_importing
from evatok.core.errors import EvatokError, MissingFileError, MissingPackageError

TABLE = "leaderboard show --published"


def shell(root: Path, words: str, redirect: str = "", **environment: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `evatok WORDS` as a shell runs it."""
    run = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$PYTHON" -m evatok {words} {redirect}'],
        cwd=root,
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(root)} | environment,
        capture_output=True,
        timeout=120,
        # a suite in the background is begun with SIGINT ignored, and so would be what it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    return run.returncode, run.stdout.decode("ascii", "replace"), run.stderr.decode()


@pytest.mark.parametrize("form", ["", "--json", "--format md"])
def test_full_stdout_is_one_line(root: Path, form: str) -> None:
    status, _, err = shell(root, f"{TABLE} {form}", ">/dev/full")
    assert status == 2 and err.startswith("evatok: stdout: No space left") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("redirect", "status"), [(">&-", 0), (">/dev/null 2>&-", 0), ("| true", 141)]
)
def test_closed_streams_are_quiet(root: Path, redirect: str, status: int) -> None:
    assert shell(root, TABLE, redirect) == (status, "", "")


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}],
    ids=["ascii", "C"],
)
def test_terminals_of_few_letters(root: Path, environment: dict[str, str]) -> None:
    status, out, err = shell(root, TABLE, **environment)
    assert status == 0 and err == "" and "\\xb7" in out  # the · of the titles


def test_an_interrupt_while_importing_is_not_swallowed(root: Path, tmp_path: Path) -> None:
    """A library whose import is interrupted, and that goes on as if nothing had been."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    import json\n"
        "except BaseException:\n    pass\n"
    )
    path = os.pathsep.join([str(tmp_path), str(root)])
    assert shell(root, "sample -n 1 -o out", PYTHONPATH=path) == (130, "", "evatok: stopped\n")


def test_an_interrupt_at_work_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(_name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("evatok.plan.info.describe", stop)
    assert main(["info", "nano"]) == 130
    assert capsys.readouterr().err == "evatok: stopped\n"


def test_a_fault_of_ours_asks_for_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its traceback; an EOFError is no interrupt either."""

    def empty(_name: str) -> None:
        raise EOFError("No data left in file")

    monkeypatch.setattr("evatok.plan.info.describe", empty)
    with pytest.raises(EOFError) as caught:
        main(["info", "nano"])
    assert "please report it" in traceback.format_exception(caught.value)[-1]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "allow it"),
        (errno.EROFS, "can be written"),
        (errno.EIO, "check it"),
        (errno.EFBIG, "limit on file sizes"),
        (errno.ENAMETOOLONG, "shorter name"),
    ],
)
def test_errors_of_the_disk(
    number: int,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_name: str) -> None:
        raise OSError(number, os.strerror(number), b"caf\xe9\n.npz")

    monkeypatch.setattr("evatok.plan.info.describe", fail)
    assert main(["info", "nano"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("evatok: caf\\udce9 .npz: ") and remedy in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "code",
    ["raise ValueError('x')", "raise OSError('x')", "int('x')", "next(zip([1], [], strict=True))"],
)
def test_only_our_errors_are_bad_input(code: str) -> None:
    """Neither the instruction nor the package that raised another one makes it the caller's."""
    with pytest.raises(Exception) as info:
        exec(code, {"__name__": "tokenizer.x"})
    assert message_for_user(info.value) is None


@pytest.mark.parametrize("kind", [EvatokError, MissingFileError, MissingPackageError])
def test_our_errors_are_one_line(kind: type[EvatokError]) -> None:
    """Also those that a worker process hands over, which have lost their frames."""
    error = pickle.loads(pickle.dumps(kind("levels\nwrong")))
    assert type(error) is kind and message_for_user(error) == "levels wrong"


def test_packages_raise_our_errors(root: Path) -> None:
    """A bare ValueError would be told as a fault of evatok."""
    for package in ("video", "training", "evaluation", "tokenizer", "generator", "evatok"):
        for path in (root / package).rglob("*.py"):
            bare = re.findall(r"raise (?:Value|FileNotFound|Import)Error\b", path.read_text())
            assert not bare, f"{path}: {bare[0]}"


def test_importing_is_seen_in_the_frames() -> None:
    assert not is_importing(sys._getframe())
    assert not is_importing(None)
