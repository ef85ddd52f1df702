"""The tables of docs/benchmarks.md, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.quality import goals
from benchmarks.quality.cells import Found
from benchmarks.quality.clicks import ACCURACY, WORST
from benchmarks.quality.goals import Goal
from benchmarks.quality.methods import METHODS
from benchmarks.quality.problems import LEFT_OUT_FIT, Problem
from benchmarks.quality.results import Results, at, metric
from benchmarks.quality.statistics import Summary

LEVELS = ("1 C", "1.5 C", "2 C", "4 C", "suggested", "fine")
MAIN = ("purity", "worst_recall", "mapped_balanced_purity", "mapped_worst_recall", "ari")
METRICS = (
    "purity", "balanced_purity", "worst_recall", "mapped_purity", "mapped_balanced_purity", "mapped_worst_recall",
    "inverse_purity", "nmi", "ami", "ari", "accuracy",
)  # fmt: skip

INTRODUCTION = """\
This page is generated: `make bench-quality` measures what is missing, `python -m benchmarks.quality report` writes it.
How to run it and what each method and problem is: [benchmarks/README.md](../benchmarks/README.md). What the image sets
are: [data.md](data.md).

- Everything is fitted on the fit split, and test images go to the nearest centroid, as the server does it. No label is
  seen but by the method that says so; labels only score.
- C is the number of real classes. `purity` and `worst recall` name each group after the majority of the *test* images
  in it, and rise with the number of groups by themselves. `mapped` ones name it after the majority of the *fit* images:
  what a person who named the groups would get.
- Imbalance is made in the fit and calibration splits. The test split keeps every image.
- Figures are mean ± standard deviation over seeds (n − 1), of each seed's mean over permutations. One difference is
  called better than another only where 95 % t-intervals do not touch.
- The patients of MedNIST are unknown: its split is by image, and images of one patient can be on both sides."""


def of_goals(rows: Sequence[Goal]) -> str:
    """A row a target."""
    said = {True: "yes", False: "no", None: "–"}
    return table(("what", "target", "measured", "met"), [(g.what, g.target, g.measured, said[g.met]) for g in rows])


def provenance(found: Found, *, quick: bool) -> str:
    """Where, when and from which commits the numbers are."""
    machines = sorted({(m["cpu"], m["cores"], r["device"]) for r in found.records for m in [r["machine"]]})
    dates = sorted(r["machine"]["date"][:10] for r in found.records)
    commits = sorted({str(r["machine"]["commit"])[:12] for r in found.records if r["machine"]["commit"]})
    stale = sum(r["stale"] for r in found.records)
    lines = [f"{cpu}, {cores} cores, {device}" for cpu, cores, device in machines]
    parts = [
        f"{len(found.records)} results, {len(found.missing)} missing",
        f"measured {dates[0]} to {dates[-1]}" if dates else "",
        "; ".join(lines),
        f"commits {', '.join(commits)}" if commits else "",
        f"**{stale} of them of older code (stale)**" if stale else "",
        "**a quick run on few images: a check that it works, not a measurement**" if quick else "",
    ]
    return "; ".join(part for part in parts if part) + "."


def of_methods(results: Results) -> str:
    """What each method is, and what it costs on the balanced MedNIST."""
    rows = []
    for method in METHODS:
        records = results.of(goals.BALANCED, method.name)
        costs = (results.summary(goals.BALANCED, method.name, at(name)) for name in ("total_s", "images_per_s"))
        peak = max((r["peak_mb"] for r in records), default=None)
        load = max((r["machine"]["load"] for r in records), default=None)
        rows.append(
            (
                f"`{method.name}`", method.summary, *(_text(cost, 0) for cost in costs),
                "–" if peak is None else f"{peak:,}", "–" if load is None else f"{load:g}",
            )
        )  # fmt: skip
    heading = ("method", "what", "seconds", "images/s", "peak MB", "highest load")
    return (
        table(heading, rows)
        + "\n\nSeconds, images/s and peak memory are of fitting the balanced MedNIST: training, embedding of the fit "
        "and calibration images (by the rate at which the cached features were made), clustering; methods that need a "
        "run for each k have made all of them. The peak is of the cell's process, imports included; that of embedding "
        "is not in it where features are cached. The load is the number of processes that wanted a core at the start: "
        "where it is not near 0, seconds are upper bounds."
    )


def of_group(results: Results, group: str) -> str:
    """The main figures at k = C, 2 C and the suggested cut; all of them folded."""
    main, full = [], []
    for level in LEVELS:
        for method in METHODS:
            values = [results.summary(group, method.name, metric(level, name)) for name in ("k", *METRICS)]
            if values[0] is None:
                continue
            texts = {name: _text(value) for name, value in zip(METRICS, values[1:], strict=True)}
            start = (
                level,
                f"{values[0].mean:.1f}".removesuffix(".0"),
                f"`{method.name}`{_stale(results, group, method.name)}",
            )
            full.append((*start, *texts.values()))
            if level in ("1 C", "2 C", "suggested"):
                main.append((*start, *(texts[name] for name in MAIN)))
    headings = ("cut", "k", "method")
    return (
        table((*headings, *_words(MAIN)), main)
        + "\n\n<details><summary>Every cut and metric</summary>\n\n"
        + table((*headings, *_words(METRICS)), full)
        + "\n\n</details>"
    )


def of_clicks(results: Results) -> str:
    """Clicks until the labels are good enough, of each seed and permutation."""
    rows = []
    for group in goals.WHOLE:
        for method in METHODS:
            records = results.of(group, method.name)
            if records and not method.labels:
                counts = [
                    [r["scores"]["clicks"][order] for r in records] for order in ("until_by_size", "until_by_cut")
                ]
                by_size = _counts(counts[0]) if method.verdicts else "no suggested cut"
                rows.append((group, f"`{method.name}`", by_size, _counts(counts[1])))
    return (
        f"A click is a group named. Labels are good where accuracy is at least {ACCURACY:g} and every class's recall "
        f"at least {WORST:g} on the test split. *By size* is what `deepmcat names export` and `deepmcat sheets` show: "
        "the groups of the suggested cut, the largest first, images of groups without a name counted as wrong. *By "
        "cut* is the smallest n at which naming all n groups of the cut at n is enough: what the tree would allow a "
        "person who knew n. *Never* means not by the suggested number, and not by 60.\n\n"
        + table(("problem", "method", "by size", "by cut"), rows)
    )


def of_cuts(results: Results) -> str:
    """The ARI of the suggested cut beside that of the best cut of the same tree."""
    rows = []
    for group in goals.WHOLE:
        for method in (m for m in METHODS if m.verdicts):
            names = ("best_k", "best", "suggested_k", "suggested")
            found = [results.summary(group, method.name, at("scores", "aris", name)) for name in names]
            if found[0] is not None:
                rows.append((group, f"`{method.name}`", *map(_text, found)))
    return table(("problem", "method", "best k", "its ARI", "suggested k", "its ARI"), rows)


def of_outliers(results: Results) -> str:
    """How far a class that was left out stands out, and false rejection."""
    rows = []
    for method in (m for m in METHODS if m.verdicts):
        for problem in results.by_problem(goals.LEFT_OUT, method.name, at("outliers", "auroc")):
            own = Results([r for r in results.records if r["problem"] == problem])
            rows.append((problem.partition("/")[2], *_outlier_row(own, method.name)))
        if results.of(goals.LEFT_OUT, method.name):
            rows.append(("**mean**", *_outlier_row(results, method.name)))
    names = ("left out", "method", "AUROC", "FPR95", "AUROC of the score", "caught at p < .01", "false rejection")
    return (
        f"MedNIST, one class in neither fit nor calibration, at most {LEFT_OUT_FIT:,} fit images of each other class. "
        "AUROC and FPR95 are of the p-value, which has ties, and of the score under it. False rejection is of the "
        "other classes' test images, with how often .01 lies in its exact 95 % binomial interval; the interval does "
        "not know that the calibration images are a draw too.\n\n" + table(names, rows)
    )


def of_differences(results: Results, ours: str) -> str:
    """What of the default recipe against the others is a difference by the intervals."""
    rows = []
    for group in goals.WHOLE:
        for level in ("1 C", "2 C"):
            read = metric(level, "mapped_balanced_purity")
            mine = results.summary(group, ours, read)
            for method in METHODS:
                other = results.summary(group, method.name, read) if method.name != ours else None
                if mine is not None and other is not None:
                    rows.append((group, level, f"`{method.name}`", _text(mine), _text(other), _verdict(mine, other)))
    heading = ("problem", "k", "other", f"`{ours}`", "the other's", f"`{ours}` is")
    return "Mapped balanced purity, 95 % t-intervals over seeds.\n\n" + table(heading, rows)


def of_problems(problems: Sequence[Problem]) -> str:
    """Images of each class that fit, and the test split."""
    rows = [
        (
            problem.name, str(len(problem.folds)),
            ", ".join(f"{name} {count:,}" for name, count in problem.fit_counts().items()),
            *(f"{sum(len(part) for part in parts):,}" for parts in (
                [fold.calibration for fold in problem.folds], [fold.test for fold in problem.folds])),
        )
        for problem in problems
    ]  # fmt: skip
    heading = ("problem", "folds", "images that fit (of the first fold)", "calibration", "test")
    return table(heading, rows)


def of_missing(found: Found) -> str:
    """The cells that are not there; a method that has none in a line."""
    measured = {record["method"] for record in found.records}
    method_of = {name: name.rsplit(" ", 2)[1] for name in found.missing}
    nothing_of = dict.fromkeys(method for method in method_of.values() if method not in measured)
    lines = [f"- all of `{method}`" for method in nothing_of]
    lines += [f"- {name}" for name, method in method_of.items() if method in measured]
    return "\n".join(lines) or "Nothing."


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a sentence where it has no row."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return "Not measured."
    return "\n".join([f"| {' | '.join(heading)} |", f"|{'---|' * len(heading)}", *lines])


def _outlier_row(results: Results, method: str) -> tuple[str, ...]:
    names = ("auroc", "fpr95", "auroc_score", "caught")
    texts = [_text(results.summary(goals.LEFT_OUT, method, at("outliers", name))) for name in names]
    rejections = [r["false_rejection"] for r in results.of(goals.LEFT_OUT, method) if r["false_rejection"]]
    share = Summary.of([r["share"] for r in rejections]).text(4) if rejections else "–"
    inside = f"{share} (.01 within {sum(r['within'] for r in rejections)} of {len(rejections)})"
    return (f"`{method}`", *texts, inside)


def _verdict(mine: Summary, other: Summary) -> str:
    if mine.above(other):
        return "better"
    return "worse" if other.above(mine) else "not told apart"


def _counts(counts: Sequence[int | None]) -> str:
    return ", ".join("never" if count is None else str(count) for count in counts)


def _stale(results: Results, group: str, method: str) -> str:
    return " (stale)" if any(r["stale"] for r in results.of(group, method)) else ""


def _words(names: Iterable[str]) -> tuple[str, ...]:
    return tuple({"nmi": "NMI", "ami": "AMI", "ari": "ARI"}.get(name, name.replace("_", " ")) for name in names)


def _text(summary: Summary | None, digits: int = 3) -> str:
    return "–" if summary is None else summary.text(digits)
