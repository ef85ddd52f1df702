"""What scale.py measures, each in a process of its own: `scale_tasks.py TASK DATA.npy K` prints a line of JSON.

The data: unit vectors of DIM dimensions, 200 kinds of Zipf's sizes, 30 groups of 30 that are alike, one stray image in
a thousand; the kind of each row lies beside them, −1 for strays.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

DIM = 128
KINDS, RARE, RARE_SIZE, STRAY_SHARE = 200, 30, 30, 1000
SPREAD = 0.7  # of a kind around its centre, whose length is 1
ITERATIONS = 20
NEIGHBOURS = 10
COMPONENTS = 64
ROWS = 100_000  # written at once
WARM_UP = 64
FULL_LISTS = 30  # neighbours that an image of a large archive has


def write_data(path: Path, n: int, seed: int = 0) -> None:
    """(n, DIM) float32 to `path`, and the kinds of the rows beside it, block by block."""
    rng = np.random.default_rng(seed)
    kinds = _kinds(n, rng)
    centres = rng.normal(size=(KINDS + RARE, DIM)) / np.sqrt(DIM)
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, DIM))
    for start in range(0, n, ROWS):
        block = kinds[start : start + ROWS]
        noise = rng.normal(size=(len(block), DIM)) / np.sqrt(DIM)
        around = np.where(block[:, None] >= 0, centres[block] + SPREAD * noise, noise)
        rows[start : start + len(block)] = around / np.linalg.norm(around, axis=1, keepdims=True)
    rows.flush()
    np.save(_kinds_file(path), kinds)


def _kinds(n: int, rng: np.random.Generator) -> Ints:
    share = 1 / np.arange(1, KINDS + 1)
    kinds = rng.choice(KINDS, n, p=share / share.sum())
    special = rng.permutation(n)
    strays, rare = n // STRAY_SHARE, RARE * RARE_SIZE
    kinds[special[:strays]] = -1
    kinds[special[strays : strays + rare]] = np.repeat(np.arange(KINDS, KINDS + RARE), RARE_SIZE)
    return kinds


def pca(rows: Floats, kinds: Ints, k: int) -> dict[str, Any]:
    """The first components of all rows, in float64."""
    from deepmcat_trainer.pca import Pca

    return {"components": len(Pca.fit(rows, COMPONENTS).components)}


def kmeans(rows: Floats, kinds: Ints, k: int) -> dict[str, Any]:
    """Ours: k-means++ from all rows or a sample, with centroids for the rows that are far from it."""
    from deepmcat_trainer import clustering

    clusters = clustering.kmeans(rows, k, niter=ITERATIONS, nredo=1, seed=0)
    return _quality(clusters.centroids, clusters.assignment, clusters.distances, kinds)


def kmeans_faiss(rows: Floats, kinds: Ints, k: int) -> dict[str, Any]:
    """faiss's own k-means as it comes: a random start, at most 256 rows a centroid."""
    import faiss

    trained = faiss.Kmeans(DIM, k, niter=ITERATIONS, spherical=True, seed=0, min_points_per_centroid=1)
    trained.train(np.asarray(rows))
    return _assigned(trained.centroids, rows, kinds)


def kmeans_minibatch(rows: Floats, kinds: Ints, k: int) -> dict[str, Any]:
    """scikit-learn's MiniBatchKMeans as it comes, its centroids then put on the sphere."""
    from sklearn.cluster import MiniBatchKMeans

    trained = MiniBatchKMeans(n_clusters=k, n_init=1, random_state=0, compute_labels=False).fit(np.asarray(rows))
    centroids = trained.cluster_centers_
    return _assigned(centroids / np.linalg.norm(centroids, axis=1, keepdims=True), rows, kinds)


def neighbours(rows: Floats, kinds: Ints, k: int) -> dict[str, Any]:
    """The nearest neighbours of every image, exact or with a measured recall."""
    from deepmcat_trainer.neighbours import nearest_neighbours

    return {"recall": round(nearest_neighbours(rows, NEIGHBOURS).recall, 4)}


def graph(rows: Floats, kinds: Ints, k: int) -> dict[str, Any]:
    """The graph of a view and its links between k clusters: of all images, or of those that stand for them."""
    from deepmcat_trainer.grouping import FinalSettings
    from deepmcat_trainer.neighbours import nearest_neighbours
    from deepmcat_trainer.representatives import Representatives
    from deepmcat_trainer.walk import links

    clusters = np.empty(len(rows), dtype=np.int64)
    clusters[np.argsort(kinds, kind="stable")] = np.arange(len(rows)) * k // len(rows)  # of one kind, nearly all
    drawn = Representatives.draw(clusters, k, FinalSettings().graph_images, seed=0)
    found = nearest_neighbours(rows[drawn.rows], NEIGHBOURS)
    links(found.indices, clusters[drawn.rows], k, drawn.counts)
    return {"recall": round(found.recall, 4), "graph_images": len(drawn.rows)}


def group(rows: Floats, kinds: Ints, k: int) -> dict[str, Any]:
    """The whole final stage after embedding, with a graph of all images and one fine cluster for about a hundred."""
    return _grouped(rows, kinds, k, len(rows))


def group_by_part(rows: Floats, kinds: Ints, k: int) -> dict[str, Any]:
    """The same with as many images for each fine cluster as the default has of archives of any size: 30."""
    return _grouped(rows, kinds, k, FULL_LISTS * k)


def _grouped(rows: Floats, kinds: Ints, k: int, graph_images: int) -> dict[str, Any]:
    """How well the tree's cut into as many groups as there are kinds agrees with them; strays are of none."""
    from sklearn.metrics import adjusted_rand_score

    from deepmcat_trainer import grouping

    final = grouping.FinalSettings(fine_k=k, graph_images=graph_images, linkage="walk")
    made = grouping.group(rows, final)
    groups = made.tree.cut(min(KINDS + RARE, made.fine.k))[made.fine.assignment]
    kept = _quality(made.fine.centroids, groups, made.fine.distances, kinds)["rare_kept"]
    of_kinds = kinds >= 0
    ari = adjusted_rand_score(kinds[of_kinds], groups[of_kinds])
    return {"rare_kept": kept, "ari": round(float(ari), 4), "graph_images": graph_images}


def merge(rows: Floats, kinds: Ints, k: int) -> dict[str, Any]:
    """The tree of the random walk over k fine clusters, here k of the rows with their own neighbours."""
    from deepmcat_trainer.grouping import FinalSettings
    from deepmcat_trainer.walk import walk_tree

    chosen = np.sort(np.random.default_rng(0).choice(len(rows), k, replace=False))
    tree = walk_tree(
        [np.asarray(rows[chosen])], np.arange(k), k, neighbours=min(NEIGHBOURS, k - 1), steps=FinalSettings().walk_steps
    )
    return {"merges": len(tree.merges)}


def prepare(rows: Floats, kinds: Ints, k: int) -> dict[str, Any]:
    """As many PNG files of 512 × 512 pixels through `deepmcat prepare`, with a decoding worker for each CPU."""
    from PIL import Image

    from deepmcat_trainer.prepare import PrepareOptions
    from deepmcat_trainer.prepare import prepare as run

    with tempfile.TemporaryDirectory(prefix="prepare-") as name:
        files = Path(name) / "files"
        files.mkdir()
        for i, row in enumerate(rows):  # smooth, and of its own for each row
            pattern = np.interp(np.outer(row[:64], row[64:]), (-0.1, 0.1), (0, 255)).astype(np.uint8)
            Image.fromarray(pattern).resize((512, 512)).save(files / f"{i}.png")
        start = time.perf_counter()
        run(PrepareOptions(sources=(str(files),), out=Path(name) / "dataset"))
        return {"seconds": round(time.perf_counter() - start, 3)}  # without writing the files


def encode(rows: Floats, kinds: Ints, k: int) -> dict[str, Any]:
    """As many images of 128 × 128 pixels through EfficientNet-Lite0, in the engine that `train` uses on a CPU."""
    from deepmcat_core.encoder import build_encoder, parse_encoder
    from deepmcat_core.engine_onnx import OnnxEngine
    from deepmcat_trainer.onnx_export import export_onnx

    images = np.random.default_rng(0).integers(0, 256, size=(len(rows), 1, 128, 128), dtype=np.uint8)
    engine = OnnxEngine(export_onnx(build_encoder(parse_encoder("efficientnet-lite0")).eval(), 128))
    start = time.perf_counter()
    engine.embed(images)
    return {"seconds": round(time.perf_counter() - start, 3)}  # without the export


OF_EMBEDDINGS: dict[str, Callable[[Floats, Ints, int], dict[str, Any]]] = {
    "pca": pca,
    "kmeans": kmeans,
    "kmeans faiss": kmeans_faiss,
    "kmeans minibatch": kmeans_minibatch,
    "neighbours": neighbours,
    "graph": graph,
}
WHOLE = {"group": group, "group by part": group_by_part}
OF_PICTURES = {"prepare": prepare, "encode": encode}
TASKS = OF_EMBEDDINGS | WHOLE | {"merge": merge} | OF_PICTURES


def _assigned(centroids: Floats, rows: Floats, kinds: Ints) -> dict[str, Any]:
    """The nearest centroid of every row, by faiss, block by block: part of the work of every k-means."""
    import faiss

    index = faiss.IndexFlatIP(DIM)
    index.add(np.ascontiguousarray(centroids, dtype=np.float32))
    found = [index.search(np.asarray(rows[i : i + ROWS]), 1) for i in range(0, len(rows), ROWS)]
    similarities, nearest = (np.concatenate(part)[:, 0] for part in zip(*found, strict=True))
    return _quality(centroids, nearest, 1 - similarities, kinds)


def _quality(centroids: Floats, nearest: Ints, distances: Floats, kinds: Ints) -> dict[str, Any]:
    """The mean distance to the centroid, and how many of the rare groups are the majority of a cluster."""
    order = np.argsort(nearest, kind="stable")
    clusters, starts = np.unique(nearest[order], return_index=True)
    rare = kinds >= KINDS
    touched = np.unique(nearest[rare])
    led = set()
    for members in (part for c, part in zip(clusters, np.split(order, starts[1:]), strict=True) if c in set(touched)):
        found, counts = np.unique(kinds[members], return_counts=True)
        if counts.max() * 2 > len(members):
            led.add(int(found[counts.argmax()]))
    return {
        "k": len(centroids),
        "distance": round(float(distances.mean(dtype=np.float64)), 5),
        "rare_kept": sum(kind >= KINDS for kind in led),
    }


def _kinds_file(path: Path) -> Path:
    return path.with_suffix(".kinds.npy")


def main(task: str, data: str, k: str) -> None:
    rows = np.load(data, mmap_mode="r")
    kinds = np.load(_kinds_file(Path(data)))
    TASKS[task](rows[:WARM_UP], kinds[:WARM_UP], 8)  # imports and thread pools are not what is measured
    start = time.perf_counter()
    found = TASKS[task](rows, kinds, int(k))
    print(json.dumps({"seconds": round(time.perf_counter() - start, 3)} | found))


if __name__ == "__main__":
    main(*sys.argv[1:])
