"""How many workers there are, how large their slabs, and when a dead one comes back."""

from __future__ import annotations

import os

import pytest

from vramblk.crew import Backoff, choose_workers, slab_bytes, startup_error
from vramblk.errors import ConfigError, PreconditionError, RuntimeFailure
from vramblk.serving.lanes import Lanes
from vramblk.settings import Settings, load_settings
from vramblk.worker import lanes_per_worker


def settings(*arguments: str) -> Settings:
    return load_settings(["--size", "64M", *arguments], {})


@pytest.mark.parametrize(("cores", "workers"), [(1, 2), (2, 2), (8, 4), (16, 8), (64, 8)])
def test_workers_follow_the_cores(monkeypatch: pytest.MonkeyPatch, cores: int, workers: int) -> None:
    """Half the cores, at least two so that one may die, at most eight."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert choose_workers(settings()) == workers


def test_workers_in_swap_mode_are_the_connections() -> None:
    """--workers is how many connections a swap server takes."""
    unix = ("--mode", "swap", "--listen-addr", "unix:/run/x")
    assert choose_workers(settings(*unix)) == 2
    assert choose_workers(settings(*unix, "--workers", "5")) == 5


def test_too_few_workers_for_the_connections_is_exit_2() -> None:
    """The message names both ways out."""
    with pytest.raises(ConfigError, match=r"max_connections = 200 .*--workers 4"):
        choose_workers(settings("--workers", "1", "--max-connections", "200"))


@pytest.mark.parametrize("connections", [1, 3, 64, 500, 4096])
@pytest.mark.parametrize("workers", [None, "64"])
def test_every_connection_finds_a_lane(connections: int, workers: str | None) -> None:
    """The slab holds a lane for each connection that a worker may be handed."""
    arguments = ["--max-connections", str(connections), *(["--workers", workers] if workers else [])]
    chosen = settings(*arguments)
    count = choose_workers(chosen)
    size = slab_bytes(chosen, count)
    lanes = Lanes(size, size, lanes_per_worker(connections, count, swap=False))
    assert count * len(list(iter(lanes.take, None))) >= connections


def test_backoff_grows_and_is_forgotten_after_a_good_life() -> None:
    """The first restart is at once; one that dies again and again waits longer, for ever."""
    backoff = Backoff(shortest_s=0.1, longest_s=0.5, good_life_s=1.0)
    assert [backoff.after(0.01) for _ in range(6)] == [0.0, 0.1, 0.2, 0.4, 0.5, 0.5]
    assert backoff.after(30.0) == 0.0


def test_a_childs_failure_keeps_its_exit_status() -> None:
    """What the engine reports ends the program with the status that the contract gives it."""
    for code, kind in ((1, RuntimeFailure), (2, ConfigError), (78, PreconditionError), (99, RuntimeFailure)):
        error = startup_error({"event": "failed", "exit_code": code, "message": "why"})
        assert type(error) is kind and str(error) == "why"
