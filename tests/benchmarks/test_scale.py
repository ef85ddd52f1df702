"""The bench of scale: what it measures, and what it says of more images than were measured."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # its files are scripts beside each other
import pages
import scale
import scale_page
import scale_tasks


def row(task, n, seconds, k=0):
    return {"task": task, "n": n, "k": k, "seconds": seconds, "peak_bytes": 2**20}


def line(text, step):
    """The columns of a table's row."""
    found = next(line for line in text.splitlines() if line.startswith(f"| {step} "))
    return [column.strip() for column in found.split("|")[2:-1]]


def test_slopes_are_followed_and_nothing_else_is_said():
    """A line through two sizes, a rate for pictures, the longest of what does not grow; what lacks is said."""
    rows = [
        row("pca", 10**5, 10), row("pca", 10**6, 60), row("pca", 10**7, 600),
        row("kmeans", 10**5, 999), row("kmeans", 10**6, 120),
        row("graph", 10**5, 1), row("graph", 10**6, 180), row("graph", 10**7, 120),
        row("encode", 1000, 3.6),
        row("merge", 16_384, 30, k=16_384),
    ]  # fmt: skip
    text = scale_page._targets(rows, 128, None)
    assert line(text, "principal components") == ["1.0 min", "10.0 min", "1.7 h"]
    assert line(text, "k-means") == ["not measured"] * 3  # one size above what trains gives no slope
    assert line(text, "graph, of each view") == ["3.0 min"] * 3
    assert line(text, "encode") == ["1.0 h", "10.0 h", "100.0 h"]
    assert line(text, "walk and merge") == ["0.5 min"] * 3
    assert line(text, "machines that prepare and encode in a day") == ["not measured"] * 3
    assert line(text, "prepared images, 128 px") == ["16.4 GB", "163.8 GB", "1.6 TB"]


def test_the_page_has_room_for_what_is_measured():
    """docs/scale.md has the marks that `--page` writes between, once each."""
    page = scale_page.PAGE.read_text()
    assert [page.count(mark) for mark in (pages.BEGIN, pages.END)] == [1, 1]


def test_peers_are_measured_where_they_end_in_reasonable_time():
    """Up to a million rows ours stands beside the others; k follows the trainer."""
    cells = scale.plan([10**5, 10**7], None)
    assert {cell.task for cell in cells if cell.n == 10**5} >= {"kmeans", "kmeans faiss", "kmeans minibatch"}
    assert {cell.task for cell in cells if cell.n == 10**7} == {"pca", "kmeans", "graph"}
    assert max(cell.k for cell in cells) == 16_384
    assert all(scale.estimate(cell, 1e11) > 0 for cell in cells)


def test_data_has_the_groups_it_says(tmp_path):
    """Unit rows, with every rare group complete and strays among them."""
    scale_tasks.write_data(tmp_path / "data.npy", 5000)
    rows, kinds = np.load(tmp_path / "data.npy"), np.load(tmp_path / "data.kinds.npy")
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    rare = np.bincount(kinds[kinds >= scale_tasks.KINDS] - scale_tasks.KINDS)
    assert rare.tolist() == [scale_tasks.RARE_SIZE] * scale_tasks.RARE
    assert (kinds == -1).sum() == 5


def test_a_rare_group_is_kept_where_it_leads_a_cluster():
    """Most of a cluster's images have to be the group's, in one cluster at least."""
    kinds = np.array([0, 0, 0, 200, 200, 201, 0, -1])
    nearest = np.array([0, 0, 0, 1, 1, 2, 2, 1])
    found = scale_tasks._quality(np.eye(3, dtype=np.float32), nearest, np.zeros(8, np.float32), kinds)
    assert found == {"k": 3, "distance": 0.0, "rare_kept": 1}


def test_a_measurement_has_time_and_memory(tmp_path):
    """Each in a process of its own."""
    scale_tasks.write_data(tmp_path / "data.npy", 3000)
    found = scale.measure(scale.Cell("kmeans", 3000, 120), tmp_path / "data.npy")
    assert found["k"] == 120
    assert found["rare_kept"] > scale_tasks.RARE / 2
    assert found["seconds"] > 0
    assert found["peak_bytes"] > 3000 * scale_tasks.DIM * 4
