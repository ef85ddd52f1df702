"""The targets, each with what was measured and whether it was met. Nothing is met that was not measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmarks.quality.cells import Record
from benchmarks.quality.methods import METHODS
from benchmarks.quality.results import Read, Results, at, metric
from benchmarks.quality.statistics import Summary

BALANCED, TEN, HUNDRED = "mednist/balanced", "mednist/10:1", "mednist/100:1"
CARDIAC, EVERYTHING, LEFT_OUT = "cardiac/5 folds", "everything/as it is", "mednist/left out"
WHOLE = (BALANCED, TEN, HUNDRED, CARDIAC, EVERYTHING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """met: None where nothing, or no target, is there to compare."""

    what: str
    target: str
    measured: str
    met: bool | None


def goals(results: Results, ours: str, timed: Record | None) -> list[Goal]:
    """Every target beside what `ours` reached. timed: the record of the two commands."""
    return [
        _balanced(results, ours),
        _scratch(results),
        _means(results, ours, TEN, "1 C", "MedNIST 10:1, k = 6: mapped balanced / worst", (0.99, 0.97)),
        _each(
            results, ours, HUNDRED, "1 C", "MedNIST 100:1, k = 6: mapped balanced, each permutation",
            {"mapped_balanced_purity": 0.95},
        ),
        _each(
            results, ours, HUNDRED, "2 C", "MedNIST 100:1, k = 12: mapped balanced / worst, each permutation",
            {"mapped_balanced_purity": 0.985, "mapped_worst_recall": 0.95},
        ),
        _cardiac(results, ours),
        _everything(results, ours),
        *_paper(results),
        *_clicks(results, ours),
        _cut(results, ours),
        *_outliers(results, ours),
        _commands(timed),
    ]  # fmt: skip


def wrong(record: Record) -> float:
    """Test images whose group is named after another class, at k = C."""
    scores = record["scores"]
    return float(round(scores["images"] * (1 - scores["levels"]["1 C"]["mapped_purity"])))


def _balanced(results: Results, ours: str) -> Goal:
    purity = results.by_seed(BALANCED, ours, metric("1 C", "purity"))
    worst = results.by_seed(BALANCED, ours, metric("1 C", "worst_recall"))
    met = None
    if purity:
        met = Summary.of(purity).mean >= 0.999 and Summary.of(worst).mean >= 0.997 and min(purity) >= 0.997
    return Goal(
        what="MedNIST balanced, k = 6: purity / worst recall", met=met,
        target="mean ≥ .999 / ≥ .997, no seed's purity below .997",
        measured=_pair(purity, worst) + (f"; lowest purity {min(purity):.4f}" if purity else ""),
    )  # fmt: skip


def _scratch(results: Results) -> Goal:
    """Of the methods without pretrained weights the one with the highest mean purity."""
    reads = metric("1 C", "purity"), metric("1 C", "worst_recall")
    found = {m.name: tuple(results.by_seed(BALANCED, m.name, read) for read in reads) for m in METHODS if m.scratch}
    found = {name: values for name, values in found.items() if values[0]}
    what, target = "the same without pretrained weights: the best of such methods", "≥ .995 / ≥ .985"
    if not found:
        return Goal(what=what, target=target, measured="not measured", met=None)
    best = max(found, key=lambda name: Summary.of(found[name][0]).mean)
    purity, worst = found[best]
    met = Summary.of(purity).mean >= 0.995 and Summary.of(worst).mean >= 0.985
    return Goal(what=what, target=target, measured=f"{best}: {_pair(purity, worst)}", met=met)


def _means(results: Results, ours: str, group: str, level: str, what: str, least: tuple[float, float]) -> Goal:
    balanced = results.by_seed(group, ours, metric(level, "mapped_balanced_purity"))
    worst = results.by_seed(group, ours, metric(level, "mapped_worst_recall"))
    met = None
    if balanced:
        met = Summary.of(balanced).mean >= least[0] and Summary.of(worst).mean >= least[1]
    return Goal(
        what=what, target=f"≥ {_plain(least[0])} / ≥ {_plain(least[1])}", measured=_pair(balanced, worst), met=met
    )


def _each(results: Results, ours: str, group: str, level: str, what: str, least: Mapping[str, float]) -> Goal:
    """A target for the mean over seeds of every permutation."""
    values = {name: results.by_problem(group, ours, metric(level, name)) for name in least}
    problems = sorted({problem for found in values.values() for problem in found})
    target = " / ".join(f"≥ {_plain(value)}" for value in least.values())
    if not problems:
        return Goal(what=what, target=target, measured="not measured", met=None)
    means = {p: {name: Summary.of(values[name][p]).mean for name in least} for p in problems}
    met = all(means[p][name] >= least[name] for p in problems for name in least)
    texts = (f"{p.rpartition('/')[2]} " + " / ".join(f"{means[p][name]:.3f}" for name in least) for p in problems)
    return Goal(what=what, target=target, measured="; ".join(texts), met=met)


def _cardiac(results: Results, ours: str) -> Goal:
    counts = [int(wrong(r)) for r in results.of(CARDIAC, ours)]
    images = results.of(CARDIAC, ours)[0]["scores"]["images"] if counts else 0
    return Goal(
        what="cardiac planes, k = 3, five folds by patient, pooled: wrong images", target="≤ 1, each seed",
        measured=f"{', '.join(map(str, counts))} of {images}" if counts else "not measured",
        met=max(counts) <= 1 if counts else None,
    )  # fmt: skip


def _everything(results: Results, ours: str) -> Goal:
    pairs = {
        level: [
            results.by_seed(EVERYTHING, ours, metric(level, name))
            for name in ("mapped_purity", "mapped_balanced_purity")
        ]
        for level in ("1 C", "2 C")
    }
    purity, balanced = pairs["2 C"]
    met = Summary.of(purity).mean >= 0.985 and Summary.of(balanced).mean >= 0.97 if purity else None
    return Goal(
        what="everything together, C = 10, k = 20: mapped purity / balanced", target="≥ .985 / ≥ .97", met=met,
        measured=f"{_pair(*pairs['2 C'])}; at k = 10 {_pair(*pairs['1 C'])}" if purity else "not measured",
    )  # fmt: skip


def _paper(results: Results) -> Iterable[Goal]:
    for name, stage in (("paper-own", "its own last k-means"), ("paper", "the final stage of the recipes")):
        texts = []
        for level, k in (("1 C", 6), ("2 C", 12)):
            purity = results.by_seed(BALANCED, name, metric(level, "purity"))
            texts += [f"k = {k}: {_pair(purity, results.by_seed(BALANCED, name, metric(level, 'worst_recall')))}"]
        yield Goal(
            what=f"paper mode on few images (MedNIST balanced), {stage}: purity / worst recall", target="its number",
            measured="; ".join(texts), met=None,
        )  # fmt: skip


def _clicks(results: Results, ours: str) -> Iterable[Goal]:
    for group, most in ((BALANCED, 6), (HUNDRED, 12)):
        records = results.of(group, ours)
        for order, called in (("until_by_size", "suggested cut, largest first"), ("until_by_cut", "all of a cut at n")):
            counts = [r["scores"]["clicks"][order] for r in records]
            yield Goal(
                what=f"groups named until accuracy ≥ .99 and every recall ≥ .95, {group}: {called}", target=f"≤ {most}",
                measured=", ".join("never" if c is None else str(c) for c in counts) if counts else "not measured",
                met=all(c is not None and c <= most for c in counts) if counts else None,
            )  # fmt: skip


def _cut(results: Results, ours: str) -> Goal:
    gaps = {}
    for group in WHOLE:
        found = [r["scores"]["aris"] for r in results.of(group, ours)]
        if found and all(found):
            gaps[group] = Summary.of([aris["best"] - aris["suggested"] for aris in found]).mean
    return Goal(
        what="suggested cut: ARI below that of the best cut of the tree, mean", target="≤ .03 everywhere",
        measured="; ".join(f"{group} {gap:.3f}" for group, gap in gaps.items()) or "not measured",
        met=all(gap <= 0.03 for gap in gaps.values()) if len(gaps) == len(WHOLE) else None,
    )  # fmt: skip


def _outliers(results: Results, ours: str) -> Iterable[Goal]:
    reads: dict[str, Read] = {name: at("outliers", name) for name in ("auroc", "fpr95")}
    found = {name: results.summary(LEFT_OUT, ours, read) for name, read in reads.items()}
    auroc = found["auroc"]
    yield Goal(
        what="one class left out: AUROC of the p-value, mean over classes",
        target="≥ .98",
        measured=f"{auroc.text()}, FPR95 {_text(found['fpr95'])}" if auroc else "not measured",
        met=auroc.mean >= 0.98 if auroc else None,
    )
    for group in (BALANCED, LEFT_OUT):
        rejections = [r["false_rejection"] for r in results.of(group, ours) if r["false_rejection"]]
        inside = sum(r["within"] for r in rejections)
        share = Summary.of([r["share"] for r in rejections]).text(4) if rejections else ""
        yield Goal(
            what=f"false rejection at p < .01, {group}", target=".01 within the exact binomial interval",
            measured=f"{share}; within for {inside} of {len(rejections)}" if rejections else "not measured",
            met=inside == len(rejections) if rejections else None,
        )  # fmt: skip


def _commands(timed: Record | None) -> Goal:
    what, target = "prepare and train (default recipe), 24,000 images: minutes, peak memory", "≤ 4 min, ≤ 2 GB"
    if timed is None:
        return Goal(what=what, target=target, measured="not measured", met=None)
    minutes, peak = sum(timed["seconds"].values()) / 60, max(timed["peak_mb"].values()) / 1000
    machine = timed["machine"]
    return Goal(
        what=what, target=target, met=minutes <= 4 and peak <= 2,
        measured=f"{minutes:.1f} min, {peak:.1f} GB ({machine['cores']} cores, load {machine['load']})",
    )  # fmt: skip


def _pair(first: list[float], second: list[float]) -> str:
    if not first or not second:
        return "not measured"
    return f"{Summary.of(first).text(4)} / {Summary.of(second).text(4)}"


def _text(summary: Summary | None) -> str:
    return summary.text() if summary else "–"


def _plain(value: float) -> str:
    return f"{value:g}".removeprefix("0")
