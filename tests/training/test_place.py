"""Which of several processes this is."""

from __future__ import annotations

import pytest

from evatok.core.errors import EvatokError
from evatok.core.processes.distributed import RankInfo, rank_from_environment


def test_shares_are_all_of_the_work_and_nothing_twice() -> None:
    for world in (1, 2, 3, 7):
        shares = [list(RankInfo(rank, world).shard(5)) for rank in range(world)]
        assert sorted(number for share in shares for number in share) == list(range(5))


def test_the_place_is_read_from_the_environment() -> None:
    assert rank_from_environment({}) == RankInfo(0, 1)
    assert rank_from_environment({"RANK": "2", "WORLD_SIZE": "4"}) == RankInfo(2, 4)


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "1"},
        {"WORLD_SIZE": "2"},
        {"RANK": "x", "WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
    ],
)
def test_half_a_place_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"RANK=|rank 2 is not one of 2"):
        rank_from_environment(environment)


def test_accelerate_gives_a_place_on_gpus_and_is_refused_on_a_cpu() -> None:
    """`accelerate launch --cpu` starts one process, whatever it was asked for."""
    cpu = {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1"}
    with pytest.raises(EvatokError, match=r"torchrun --nproc-per-node 2 -m evatok"):
        rank_from_environment(cpu)
    assert rank_from_environment(cpu | {"RANK": "1", "WORLD_SIZE": "2"}) == RankInfo(1, 2)
