"""Captions as ids: a SentencePiece model, trained on the captions of a data set.

A text is folded to lower case and cut into the pieces of a byte-pair model: whole words, where
captions use few. What no piece can write is written in bytes, so that every text has ids and none
means "unknown". Training has no randomness: the same captions give the same file, which is
SentencePiece's own, data and no code.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from evatok.core.errors import EvatokError, MissingFileError, MissingPackageError
from evatok.core.files import atomic_file

MODEL_FILE = "text.model"
BYTES = 256  # pieces of the byte fallback; one more is SentencePiece's own for "unknown"


def sentencepiece() -> Any:
    """The library.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import sentencepiece
    except ImportError as error:
        raise MissingPackageError("texts need sentencepiece: pip install sentencepiece") from error
    return sentencepiece


class TextTokenizer:
    """Text → ids in [0, N) and back.

    Attributes:
        digest: names the model: the same ids mean the same pieces only under the same digest.
    """

    def __init__(self, proto: bytes) -> None:
        """Take a serialised model.

        Raises:
            ImportError: sentencepiece is not installed.
            RuntimeError: no model.
        """
        if not proto:  # the library takes it for a model without pieces
            raise RuntimeError("an empty model")
        self._proto = proto
        try:
            self._processor = sentencepiece().SentencePieceProcessor(model_proto=proto)
        except UnicodeDecodeError as error:  # in the message of the library's own error
            raise RuntimeError("no model of pieces") from error
        self.digest = hashlib.sha256(proto).hexdigest()[:16]

    def __len__(self) -> int:
        """N, pieces."""
        return self._processor.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """Ids of a text; none of an empty one."""
        return self._processor.encode(folded(text))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, in lower case."""
        return self._processor.decode(list(ids))

    def save(self, directory: str | Path) -> Path:
        """Write directory/text.model, whole or not at all, and return its path."""
        directory = Path(directory)
        with atomic_file(directory / MODEL_FILE) as partial:
            partial.write_bytes(self._proto)
        return directory / MODEL_FILE

    @classmethod
    def load(cls, directory: str | Path) -> TextTokenizer:
        """The model in a folder.

        Raises:
            FileNotFoundError: there is none.
            EvatokError: the file is no SentencePiece model.
            ImportError: sentencepiece is not installed.
        """
        path = Path(directory) / MODEL_FILE
        if not path.is_file():
            raise MissingFileError(f"{path} is missing: `evatok text train` makes it")
        try:
            return cls(path.read_bytes())
        except RuntimeError as error:
            raise EvatokError(f"{path} is not a SentencePiece model; train it anew") from error


def folded(text: str) -> str:
    """Lower case, compatibility forms of Unicode made one (NFKC), single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def train_text_tokenizer(captions: Sequence[str], vocabulary_size: int) -> TextTokenizer:
    """Learn pieces from captions.

    Args:
        captions: at least one that is not empty.
        vocabulary_size: most pieces, the 256 bytes included; few captions give fewer.

    Raises:
        EvatokError: no captions, or too few pieces for their characters.
        ImportError: sentencepiece is not installed.
    """
    captions = [caption for caption in map(folded, captions) if caption]
    if not captions:
        raise EvatokError("no captions to learn pieces from")
    library, proto = sentencepiece(), BytesIO()
    try:
        library.SentencePieceTrainer.train(
            sentence_iterator=iter(captions),
            model_writer=proto,
            vocab_size=vocabulary_size,
            hard_vocab_limit=False,
            model_type="bpe",
            character_coverage=1.0,
            byte_fallback=True,
            normalization_rule_name="identity",  # `folded` does it; its table takes 240 kB
            shuffle_input_sentence=False,
            num_threads=1,  # sums in one order
            unk_id=0,  # the library wants one; bytes leave it without use
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise EvatokError(
            f"{vocabulary_size} pieces do not hold {BYTES} bytes and every character of these "
            "captions; ask for a larger vocabulary"
        ) from error
    return TextTokenizer(proto.getvalue())
