from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from generator.grammar import Grammar, Vocabulary

VOCABULARY = Vocabulary(codebook_size=7, levels=(1, 3, 4), num_blocks=3, class_names=("a", "b"))


def test_ids_lie_side_by_side() -> None:
    v = VOCABULARY
    assert v.first_length == 7
    assert [v.null, v.frames, v.separator] == [10, 11, 12]
    assert [v.class_token(0), v.class_token(1)] == [13, 14]
    assert v.size == 15
    assert v.counts.tolist() == [0] * 7 + [1, 3, 4] + [0] * 5
    with pytest.raises(ValueError, match="class 2"):
        v.class_token(2)
    with pytest.raises(ValueError, match="ascending"):
        Vocabulary(codebook_size=7, levels=(3, 1), num_blocks=3)


def test_round_trip_through_json() -> None:
    assert Vocabulary.model_validate_json(VOCABULARY.model_dump_json()) == VOCABULARY


@settings(max_examples=50)
@given(st.data())
def test_encode_then_decode_is_identity(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.sampled_from(VOCABULARY.levels), min_size=1, max_size=5))
    code = st.integers(0, 6)
    blocks = [
        torch.tensor(data.draw(st.lists(code, min_size=count, max_size=count))) for count in counts
    ]
    ids = VOCABULARY.encode_blocks(blocks)
    assert len(ids) == len(counts) + sum(counts)
    back = VOCABULARY.decode_blocks(ids)
    assert [block.tolist() for block in back] == [block.tolist() for block in blocks]


@pytest.mark.parametrize("ids", [[0], [8, 0, 0], [8, 0, 0, 7], [7, 10], [12]])
def test_decode_refuses_what_breaks_the_grammar(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="place"):
        VOCABULARY.decode_blocks(torch.tensor(ids))


def test_encode_refuses_counts_and_ids_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="levels"):
        VOCABULARY.encode_blocks([torch.tensor([0, 1])])
    with pytest.raises(ValueError, match="codes"):
        VOCABULARY.encode_blocks([torch.tensor([7])])


def test_mask_follows_the_sequence_row_by_row() -> None:
    grammar = Grammar(VOCABULARY, torch.tensor([2, 1]))
    codes, lengths = [*[True] * 7, *[False] * 8], [*[False] * 7, *[True] * 3, *[False] * 5]
    nothing = [False] * 15
    # row 0: len 1, code, len 3, three codes; row 1: len 1, code, then finished
    rows = [[7, 5, 8, 0, 1, 2], [7, 6, 0, 0, 0, 0]]
    expected = [
        [lengths, codes, lengths, codes, codes, codes, nothing],
        [lengths, codes, nothing, nothing, nothing, nothing, nothing],
    ]
    for step in range(6):
        assert grammar.allowed().tolist() == [expected[0][step], expected[1][step]]
        assert grammar.finished().tolist() == [False, step >= 2]
        grammar.advance(torch.tensor([rows[0][step], rows[1][step]]))
    assert grammar.allowed().tolist() == [nothing, nothing]
    assert grammar.finished().all()


def test_rows_can_leave_and_enter() -> None:
    grammar = Grammar(VOCABULARY, torch.tensor([3, 2]))
    grammar.advance(torch.tensor([9, 7]))
    grammar.select(torch.tensor([1]))
    grammar.extend(torch.tensor([3]))
    assert grammar.blocks_left.tolist() == [1, 3]
    assert grammar.codes_left.tolist() == [1, 0]
