"""What every server of the comparison runs: the same encoder on ONNX Runtime, or a fixed time for each batch.

Imports numpy alone, and ONNX Runtime where it runs it, because every peer loads it in its own environment. The variable
WORK says what, as JSON: {"seconds": …, "dim": …} or {"model": FILE, "threads": …}; and in each case {"log": FILE}, to
which every batch that was run adds when it ended, by the system's monotonic clock, and how many images it had.
"""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable

import numpy as np

VARIABLE = "SERVING_WORK"
ENTRY = struct.Struct("<dI")  # when, and how many

Work = Callable[[np.ndarray], np.ndarray]


def from_environment() -> Work:
    """(B, S, S) uint8 → (B, D) float32, as SERVING_WORK says."""
    return opened(json.loads(os.environ[VARIABLE]))


def opened(spec: dict) -> Work:
    run = _session(spec) if "model" in spec else _fixed(spec)
    log = os.open(spec["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT) if spec.get("log") else None

    def work(planes: np.ndarray) -> np.ndarray:
        embeddings = run(planes)
        if log is not None:
            os.write(log, ENTRY.pack(time.monotonic(), len(planes)))
        return embeddings

    return work


def _fixed(spec: dict) -> Work:
    """The same time for every batch, in which the processor is free; unit vectors that the pixels choose."""
    unit = np.eye(spec["dim"], dtype=np.float32)

    def run(planes: np.ndarray) -> np.ndarray:
        time.sleep(spec["seconds"])
        return unit[planes.reshape(len(planes), -1)[:, 0].astype(int) % spec["dim"]]

    return run


def _session(spec: dict) -> Work:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec["threads"]
    session = onnxruntime.InferenceSession(spec["model"], options, providers=["CPUExecutionProvider"])
    return lambda planes: session.run(["embeddings"], {"images": planes[:, None]})[0]
