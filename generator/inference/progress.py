"""State of the grammar of each row on the host, without asking the device.

Inside a block the next tokens are codes whatever is drawn, so only a length token has to be read
back. The masks need the same state on the device, `grammar.Grammar`.

Shape letters: N requests.
"""

from __future__ import annotations

from collections.abc import Sequence


class GrammarProgress:
    """Blocks and codes still to come in N rows, and tokens taken.

    Attributes:
        blocks_left: length tokens still to come.
        codes_left: codes still to come in the present block.
        count: tokens taken.
    """

    def __init__(self) -> None:
        self.blocks_left: list[int] = []
        self.codes_left: list[int] = []
        self.count: list[int] = []

    def extend(self, num_blocks: Sequence[int]) -> None:
        """Add rows with so many blocks to come."""
        self.blocks_left += num_blocks
        self.codes_left += [0] * len(num_blocks)
        self.count += [0] * len(num_blocks)

    @property
    def only_codes(self) -> bool:
        """Whether the next token of every row is a code."""
        return all(self.codes_left)

    def ending(self, whole: bool) -> list[int]:
        """Rows whose next token is the last one of a block, or of the clip if `whole`."""
        rows = zip(self.codes_left, self.blocks_left, strict=True)
        return [
            i for i, (codes, blocks) in enumerate(rows) if codes == 1 and not (whole and blocks)
        ]

    def advance(self, announced: Sequence[int] | None) -> None:
        """Every row has taken a token.

        Args:
            announced: codes that each row now has to come, as the device says; None where all
                took codes.
        """
        for row, codes in enumerate(self.codes_left):
            self.count[row] += 1
            if codes:
                self.codes_left[row] -= 1
            else:
                assert announced is not None
                self.blocks_left[row] -= 1
                self.codes_left[row] = announced[row]

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        for name in ("blocks_left", "codes_left", "count"):
            values = getattr(self, name)
            setattr(self, name, [values[row] for row in rows])
