"""Names that have changed: an old one is refused in one line, which gives the new one."""

from __future__ import annotations

# Last part of a key of the settings → the same of the new key.
KEYS = {
    "revive_below": "restart_below",
    "revive_every": "restart_every",
}

# Command and its option → the new option. Other commands may have an option of the old name.
OPTIONS = {
    ("predict", "--quality"): "--length-bias",
    ("sample", "--quality"): "--length-bias",
}


def renamed_option(words: list[str]) -> str | None:
    """Say what an old option in the words of a command is called now; None if there is none."""
    given = {word.split("=")[0] for word in words[1:]}
    for (command, old), new in OPTIONS.items():
        if words[:1] == [command] and old in given:
            return f"{command}: {old} is now called {new}"
    return None
