"""Memory in which server processes keep their metrics, so that each of them can show the sum of all."""

import mmap
from typing import Final

# Numbers that a process has room for; a test holds it against what all series together need.
CELLS: Final = 2048
# The first of them are gauges, which describe the present and are cleared when a process has ended.
GAUGES: Final = 2


class MetricsMemory:
    """A row of numbers for each process, shared with processes forked from this one.

    A replacement of a process that has ended goes on with its row.

    Args:
        processes: how many there are.

    Attributes:
        rows: FP64 `[CELLS]` for each process.
        process_ids: the ids of the processes, 0 for one that is not running.
    """

    def __init__(self, processes: int = 1) -> None:
        cells = memoryview(mmap.mmap(-1, 8 * CELLS * processes)).cast("d")
        self.rows = [cells[number * CELLS : (number + 1) * CELLS] for number in range(processes)]
        self.process_ids = memoryview(mmap.mmap(-1, 4 * processes)).cast("i")

    def clear(self, number: int) -> None:
        """Clears the id and the gauges of a process that has ended; its counters stay."""
        self.process_ids[number] = 0
        for gauge in range(GAUGES):
            self.rows[number][gauge] = 0.0
