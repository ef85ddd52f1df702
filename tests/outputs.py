"""What an answer in Triton's tensors has to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from deepmcat_core.assigner import Assignment


def check_outputs(
    outputs: Mapping[str, np.ndarray], assignments: Sequence[Assignment], *, p_value_atol: float = 0
) -> None:
    """The outputs, by name, say what these assignments do."""
    expected = {
        "cluster": [a.cluster_id for a in assignments],
        "category_id": [a.category_id.encode() for a in assignments],
        "category": [a.category.encode() for a in assignments],
        "outlier": [bool(a.outlier) for a in assignments],
    }
    for name, values in expected.items():
        assert outputs[name].tolist() == values, name
    np.testing.assert_allclose(outputs["distance"], [a.distance for a in assignments], atol=1e-6)
    p_values = [np.nan if a.p_value is None else a.p_value for a in assignments]
    np.testing.assert_allclose(outputs["p_value"], p_values, atol=p_value_atol)
