"""The rows of the table, and the rates that they are compared with.

The reference figures are those of docs/design/performance.md: fio on one NVIDIA H200, Unix socket, 2 GiB.
A row's target is factor x figure of the best C program x (nbdkit's memory plugin now / then), since
machines differ and that plugin shows how fast sockets are on this one.
"""

from __future__ import annotations

from dataclasses import dataclass

IOPS = "IOPS"
MIB_S = "MiB/s"


@dataclass(frozen=True)
class Row:
    """One fio workload.

    Attributes:
        pattern: fio's ``rw``.
        block: fio's ``bs``, or empty where ``extra`` holds a ``--bssplit``.
        depth: requests in flight per connection.
        unit: IOPS, or MiB/s where blocks are large.
        c_figure: the best C program on an H200, in ``unit``.
        memory_figure: nbdkit's memory plugin beside it, in ``unit``.
        factor: the target as a multiple of ``c_figure``.
        floor: least ratio to nbdkit's memory plugin that a CPU through PoCL should reach.
        direct_floor: the same of a server without workers on memory that needs no OpenCL.
    """

    name: str
    pattern: str
    block: str
    depth: int
    connections: int = 1
    unit: str = IOPS
    extra: tuple[str, ...] = ()
    c_figure: float | None = None
    memory_figure: float | None = None
    factor: float | None = None
    floor: float | None = None
    direct_floor: float | None = None

    @property
    def reads_only(self) -> bool:
        return self.pattern in ("read", "randread")

    def target(self, memory_now: float | None) -> float | None:
        """In ``unit``; without a measured memory plugin it is the figure of the H200, unscaled."""
        if self.c_figure is None or self.factor is None:
            return None
        scale = memory_now / self.memory_figure if memory_now and self.memory_figure else 1.0
        return self.factor * self.c_figure * scale


ROWS: tuple[Row, ...] = (
    Row("4k randread qd1", "randread", "4k", 1, c_figure=41_586, memory_figure=44_901, factor=1.0),
    Row("4k randwrite qd1", "randwrite", "4k", 1, c_figure=46_118, memory_figure=48_305, factor=1.0),
    Row("4k randread qd32", "randread", "4k", 32, c_figure=164_022, memory_figure=111_994, factor=1.25),
    Row("4k randwrite qd32", "randwrite", "4k", 32, c_figure=169_575, memory_figure=122_580, factor=1.25),
    Row("4k randread qd32 x4", "randread", "4k", 32, 4,
        c_figure=458_295, memory_figure=412_726, factor=1.5),
    Row("4k randwrite qd32 x4", "randwrite", "4k", 32, 4,
        c_figure=357_938, memory_figure=502_287, factor=1.5),
    Row("4k 70/30 mix qd32 x4", "randrw", "4k", 32, 4, extra=("--rwmixread=70",),
        c_figure=432_000, memory_figure=464_000, factor=1.5),
    Row("32k randread qd16 x4", "randread", "32k", 16, 4,
        c_figure=285_193, memory_figure=267_749, factor=1.25),
    Row("128k read qd16", "read", "128k", 16, unit=MIB_S, c_figure=4_004, memory_figure=3_103, factor=1.25),
    Row("128k write qd16", "write", "128k", 16, unit=MIB_S, c_figure=3_638, memory_figure=2_707, factor=1.25),
    Row("1m read qd8", "read", "1m", 8, unit=MIB_S, c_figure=4_833, memory_figure=4_795, factor=1.25),
    Row("1m write qd8", "write", "1m", 8, unit=MIB_S, c_figure=4_949, memory_figure=4_059, factor=1.25),
    Row("1m read qd8 x4", "read", "1m", 8, 4, MIB_S, c_figure=13_256, memory_figure=13_797, factor=1.25),
    Row("1m write qd8 x4", "write", "1m", 8, 4, MIB_S, c_figure=12_963, memory_figure=13_559, factor=1.25),
)  # fmt: skip

QUICK: tuple[Row, ...] = (
    Row("4k randread qd1", "randread", "4k", 1, direct_floor=0.6),
    Row("4k randwrite qd1", "randwrite", "4k", 1, direct_floor=0.6),
    Row("4k randread qd32", "randread", "4k", 32, floor=0.4),
    Row("4k randwrite qd32", "randwrite", "4k", 32, floor=0.4),
    Row("1m read qd8", "read", "1m", 8, unit=MIB_S, floor=0.6),
    Row("1m write qd8", "write", "1m", 8, unit=MIB_S, floor=0.6),
)

_SIZES = "--bssplit=4k/60:16k/20:64k/15:256k/5"
FAIRNESS = "fairness: 4k randread qd1 beside 1m write qd8"
EXTRA: tuple[Row, ...] = (
    Row("4k randread qd4", "randread", "4k", 4),
    Row("4k randwrite qd4", "randwrite", "4k", 4),
    Row("4k 70/30 mix qd32", "randrw", "4k", 32, extra=("--rwmixread=70",)),
    Row("mixed sizes randread qd32 x4", "randread", "", 32, 4, extra=(_SIZES,)),
    Row("mixed sizes 70/30 mix qd32 x4", "randrw", "", 32, 4, extra=(_SIZES, "--rwmixread=70")),
    Row(FAIRNESS, "randread", "4k", 1),
)

BY_NAME: dict[str, Row] = {row.name: row for row in (*ROWS, *EXTRA)}


def choose(text: str) -> tuple[Row, ...]:
    """Rows from ``table``, ``extra``, ``all`` or comma-separated parts of names.

    Raises:
        ValueError: a part that no row's name holds.
    """
    if text in ("table", "extra", "all"):
        return {"table": ROWS, "extra": EXTRA, "all": (*ROWS, *EXTRA)}[text]
    chosen: dict[str, Row] = {}
    for part in (each.strip() for each in text.split(",")):
        # A whole name means that row alone, although it may be the start of others.
        found = [BY_NAME[part]] if part in BY_NAME else [row for row in BY_NAME.values() if part in row.name]
        if not part or not found:
            raise ValueError(f"no row {part!r}; there are: {', '.join(BY_NAME)}")
        chosen |= {row.name: row for row in found}
    return tuple(chosen.values())
