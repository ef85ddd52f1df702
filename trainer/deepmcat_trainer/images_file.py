"""images.npy while it grows: a numpy header with room for the final shape, then one plane after the other.

numpy pads the header for the first axis to grow, so the final one has the size of the first and is written over it.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy


class ImagesFile:
    """Appends planes of (size, size) uint8 to a file that `numpy.load` reads once it is finished.

    rows: how many planes of an interrupted run count; what was written behind them is cut off.
    """

    def __init__(self, path: Path, *, size: int, rows: int) -> None:
        self._size = size
        self.rows = rows
        self._file = path.open("r+b" if path.exists() else "w+b")
        header = self._header()
        self._file.truncate(len(header) + rows * size * size)
        self._file.write(header)
        self._file.seek(0, os.SEEK_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, plane: npt.NDArray[np.uint8]) -> int:
        """Write a plane; returns its row."""
        self._file.write(plane.tobytes())
        self.rows += 1
        return self.rows - 1

    def sync(self) -> None:
        """Bring what was appended to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Write the final shape."""
        self._file.seek(0)
        self._file.write(self._header())
        self._file.seek(0, os.SEEK_END)
        self.sync()

    def _header(self) -> bytes:
        buffer = io.BytesIO()
        shape = (self.rows, self._size, self._size)
        npy.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
        return buffer.getvalue()
