"""Every renamed key and option is refused in one line that gives the new name."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from evatok.cli.app import main
from evatok.core.config import ConfigError, load_config, read_yaml
from evatok.core.renamed import KEYS, OPTIONS
from evatok.workflows.train import load_training
from tokenizer.training.tokenizer_stage import ProxyConfig


@pytest.mark.parametrize("old", KEYS)
def test_renamed_key_in_a_file(old: str, root: Path, tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(f"base: {root / 'configs' / 'nano' / 'proxy.yaml'}\ncodebook: {{{old}: 1}}\n")
    assert old not in read_yaml(root / "configs" / "nano" / "proxy.yaml")["codebook"]
    with pytest.raises(ConfigError) as found:
        load_config(ProxyConfig, path)
    assert str(found.value) == f"{path}: codebook.{old}: is now called {KEYS[old]}"


@pytest.mark.parametrize("old", KEYS)
def test_renamed_key_in_an_override(old: str, root: Path) -> None:
    with pytest.raises(ConfigError, match=f"codebook.{old}: is now called {KEYS[old]}$"):
        load_training(root / "configs" / "nano" / "proxy.yaml", [f"codebook.{old}=1"])


@pytest.mark.parametrize(("command", "old"), OPTIONS)
@pytest.mark.parametrize("form", ["{} 0.5", "{}=0.5"])
def test_renamed_option(
    command: str, old: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [command, *shlex.split(form.format(old)), "-o", str(tmp_path / "out")]
    assert main(words) == 2
    new = OPTIONS[command, old]
    assert capsys.readouterr().err == f"evatok: {command}: {old} is now called {new}\n"
    assert not (tmp_path / "out").exists()
