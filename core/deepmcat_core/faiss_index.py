"""faiss, and its indexes on the device that is asked for: the one place that knows how."""

from __future__ import annotations

from typing import Any

from deepmcat_core.errors import MissingExtra


def import_faiss() -> Any:
    """The module, which ships no type information. Raises MissingExtra."""
    try:
        import faiss
    except ImportError as error:
        raise MissingExtra("faiss", "cpu") from error
    return faiss


def on_device(index: Any, device: str) -> Any:
    """`index` on the GPU that `device` names ("cuda", "cuda:1"), where this faiss has GPU indexes; else as it is."""
    faiss = import_faiss()
    if device.startswith("cuda") and hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0:
        ordinal = int(device.partition(":")[2] or 0)
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), ordinal, index)
    return index
