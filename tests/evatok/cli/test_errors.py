"""Which exceptions are for the user, and what the commands print."""

from __future__ import annotations

import errno
import json
import logging
import threading
from pathlib import Path

import numpy as np
import pydantic
import pytest
import torch

from evatok.cli.app import tell_of_thread
from evatok.cli.commands.scores import open_cache
from evatok.cli.errors import message_for_user
from evatok.cli.output import Once, show
from evatok.core.errors import EvatokError
from tokenizer.assignment import Levels


class Strict(pydantic.BaseModel):
    steps: int


def caught(action) -> BaseException:  # type: ignore[no-untyped-def]
    with pytest.raises(Exception) as info:
        action()
    return info.value


def test_our_own_value_errors_are_one_line() -> None:
    error = caught(lambda: Levels((8, 4)))
    assert message_for_user(error) == "levels (8, 4) must be distinct, ascending and positive"


def test_missing_files_name_the_file() -> None:
    error = caught(lambda: Path("no-such-file.mp4").read_bytes())
    assert message_for_user(error) == "no-such-file.mp4: No such file or directory"


def test_config_errors_name_the_key() -> None:
    error = caught(lambda: Strict.model_validate({"steps": "many"}))
    message = message_for_user(error)
    assert message is not None and message.startswith("steps: ") and "\n" not in message


def test_no_memory_is_told_in_a_line() -> None:
    """On a CPU and, by a class of its own, on an accelerator."""
    for action in (
        lambda: torch.empty(1 << 60, dtype=torch.uint8),
        lambda: np.empty(1 << 60, np.uint8),
        lambda: _raise(torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")),
    ):
        message = message_for_user(caught(action))
        assert message is not None and "\n" not in message
        assert message.startswith("out of memory (") and "smaller batches" in message


def _raise(error: Exception) -> None:
    raise error


def test_others_keep_their_traceback() -> None:
    assert message_for_user(caught(lambda: int("x"))) is None  # not raised by our packages
    assert message_for_user(caught(lambda: {}["x"])) is None
    assert message_for_user(caught(lambda: next(zip([1], [], strict=True)))) is None


def test_json_is_one_object_on_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    result = {"psnr": 27.5, "clips": [{"tokens": 4}, {"tokens": 8}]}
    print("progress")
    show(result, as_json=True)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result


def test_a_warning_is_shown_once() -> None:
    once = Once()

    def shown(level: int, text: str) -> bool:
        return once.filter(logging.LogRecord("x", level, "x.py", 1, text, (), None))

    assert [shown(logging.WARNING, "few vectors") for _ in range(40)] == [True] + 39 * [False]
    assert shown(logging.WARNING, "another") and not shown(logging.WARNING, "another")
    assert shown(logging.INFO, "step 1") and shown(logging.INFO, "step 1")


def test_tables_hold_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    show({"clips": [{"name": "a\x1b[31m\nb"}], "file": "c\x1b]0;x\x07", "n": {"k": "\x9b"}}, False)
    out = capsys.readouterr().out
    assert not any(letter in out for letter in "\x1b\x07\x9b") and "a [31m b" in out


def test_a_cache_that_cannot_be_made_names_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EVATOK_CACHE", str(tmp_path / "file"))
    with pytest.raises(EvatokError, match=r"file.*: give --cache FILE, or --no-cache"):
        open_cache(None, without=False)


def test_people_get_tables(capsys: pytest.CaptureFixture[str]) -> None:
    show({"file": "a.mp4", "clips": [{"clip": 0, "fvd[nano]": 12345}], "parts": {"x": 1.5}}, False)
    out = capsys.readouterr().out
    assert "a.mp4" in out and "12,345" in out and "fvd[nano]" in out and "x: 1.5" in out


def test_no_room_for_temporary_files_is_told_in_a_line() -> None:
    """As `tempfile` raises it on a full disk, whoever imports what."""
    told = message_for_user(
        FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
    )
    assert told is not None and told.startswith("No usable temporary directory found in ['/tmp'] (")
    assert "TMPDIR" in told
    assert message_for_user(FileNotFoundError(errno.ENOENT, "something else")) is None


def test_no_room_for_compiled_code_is_told_in_a_line() -> None:
    """torch's compiler wraps what the disk said."""
    wrapped = RuntimeError("backend='inductor' raised")
    wrapped.inner_exception = OSError(errno.ENOSPC, "No space left on device", "/tmp/x.cpp")  # type: ignore[attr-defined]
    told = message_for_user(wrapped)
    assert told is not None and told.startswith("/tmp/x.cpp: No space left on device (free some")
    failed = type("CppCompileError", (RuntimeError,), {})("error\n\nOutput:\nas: no space left\n")
    wrapped.inner_exception = failed  # type: ignore[attr-defined]
    told = message_for_user(wrapped)
    assert told is not None and told.startswith("the C++ compiler failed: as: no space left (look")
    wrapped.inner_exception = ValueError("a fault")  # type: ignore[attr-defined]
    assert message_for_user(wrapped) is None


def test_a_thread_tells_in_a_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    def hit(error: Exception) -> str:
        tell_of_thread(threading.ExceptHookArgs((type(error), error, None, None)))
        return capsys.readouterr().err

    full = hit(OSError(errno.EFBIG, "File too large"))
    assert full.startswith("in the background: File too large (") and full.count("\n") == 1
    assert "KeyError: 'x'" in hit(KeyError("x"))
