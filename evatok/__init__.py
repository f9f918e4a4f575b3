"""Adaptive-length video tokenization: the Python API.

```python
import evatok

model = evatok.load("nano")
video = evatok.read_video("clip.mp4")
tokens = model.encode(video, quality=1.6)
tokens.save("clip.evt")
again = model.decode(tokens)
again.save("again.mp4")
```

| name | what it is |
| --- | --- |
| `load` | a model by name, folder or hub id: a `Model` |
| `read_video` | a file of any size and length: a `Video` |
| `open` | a token file: `VideoTokens` |
| `fvd` | Fréchet video distance between two sets of videos |
| `Model` | `encode`, `decode`, `sample`, `predict`; its parts are `nn.Module`s |
| `Video` | frames with their times |
| `VideoTokens` | tokens of a whole video, as in a token file |
| `Tokens` | tokens of a batch of clips; `Tokens.cat` collates them |
| `EvatokError` | bad input, named together with the remedy |

Names are imported when they are first used: `import evatok` alone loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evatok.api.model import Model, load
    from evatok.api.scores import fvd
    from evatok.api.token_files import VideoTokens, open
    from evatok.api.videos import Video, read_video
    from evatok.core.errors import EvatokError
    from tokenizer.tokens import Tokens

__all__ = [
    "EvatokError",
    "Model",
    "Tokens",
    "Video",
    "VideoTokens",
    "fvd",
    "load",
    "open",
    "read_video",
]

HOMES = {
    "EvatokError": "evatok.core.errors",
    "Model": "evatok.api.model",
    "Tokens": "tokenizer.tokens",
    "Video": "evatok.api.videos",
    "VideoTokens": "evatok.api.token_files",
    "fvd": "evatok.api.scores",
    "load": "evatok.api.model",
    "open": "evatok.api.token_files",
    "read_video": "evatok.api.videos",
}


def __getattr__(name: str) -> object:
    """Import a name of the API when it is first used (PEP 562)."""
    if name not in HOMES:
        raise AttributeError(f"module 'evatok' has no attribute {name!r}")
    value = getattr(importlib.import_module(HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the API beside what is loaded."""
    return sorted({*globals(), *__all__})
