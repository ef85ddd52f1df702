"""Naming without a web page: the categories as a CSV file that a spreadsheet can edit, and back.

    category_id,name,codes,merge_into,fit_images,terms
    c-1f…,CT CHEST,SCT:51185008:Chest,,1204,"Modality=CT 100 %; BodyPartExamined=CHEST 97 %"

People edit `name`, `codes` (SCHEME:VALUE:MEANING, several separated by ";", a backslash before a ":" or ";" that is
part of a text) and `merge_into` (the id of another category); the last two columns only inform. Rows may be left out.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deepmcat_core.catalog import UNKNOWN, Catalog, Category, CategoryStatus, Code, Term
from deepmcat_core.errors import ConfigError

COLUMNS = ("category_id", "name", "codes", "merge_into", "fit_images", "terms")
LONGEST_NAME = 200

_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # what a spreadsheet would run as a formula (OWASP, "CSV injection")
_QUOTED = re.compile(r"'+[=+\-@\t\r]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a person wrote about one category. line: where, in the file."""

    line: int
    category_id: str
    name: str
    codes: tuple[Code, ...]
    merge_into: str


def export_names(catalog: Catalog) -> str:
    """The active categories as CSV text, the largest first."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for c in sorted(catalog.active, key=lambda c: -c.fit_images):
        codes = ";".join(":".join(map(_escape, (code.scheme, code.value, code.meaning))) for code in c.codes)
        terms = "; ".join(f"{t.attribute}={t.value} {t.share:.0%}" for t in c.terms)
        writer.writerow([_quote(cell) for cell in (c.id, c.name, codes, "", str(c.fit_images), terms)])
    return text.getvalue()


def read_names(path: Path) -> list[Row]:
    """The rows of a CSV file, as a spreadsheet may have saved it (with a byte order mark, or ";" between cells).

    Raises ConfigError naming the line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text; save it as CSV UTF-8") from error
    delimiter = "," if "," in text.partition("\n")[0] else ";"
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    if missing := set(COLUMNS[:4]) - set(reader.fieldnames or ()):
        raise ConfigError(f"{path} has no column {min(missing)!r}; export the names and edit that file")
    try:
        return [_row(cells, reader.line_num) for cells in reader if any(cells.values())]
    except csv.Error as error:
        raise ConfigError(f"line {reader.line_num} is not CSV; export the names again") from error


def apply_names(catalog: Catalog, rows: Sequence[Row]) -> Catalog:
    """The next version of the catalog, or the same one where nothing changes. Raises ConfigError naming the line.

    A new name, new codes or a merge into it make a category `named`: people have decided on it. A category merged into
    another gives it its clusters and is retired; the other records it in its lineage. A row whose merge has been made
    already changes nothing.
    """
    by_row = _rows_by_id(catalog, rows)
    edited = {c.id: _edited(c, by_row.get(c.id)) for c in catalog.categories}
    for source, target in _merge_targets(by_row, edited).items():
        edited[target], edited[source] = _merge(edited[target], edited[source])
    _check_names(edited.values(), by_row)
    categories = tuple(edited.values())
    return catalog if categories == catalog.categories else catalog.succeed(categories)


def _row(cells: Mapping[str | None, Any], line: int) -> Row:
    if any(cells.get(None) or []):  # DictReader keeps what has no column under None
        raise ConfigError(f"line {line} has more cells than the first line; put quotes around a text with commas")

    def text(column: str) -> str:
        return _unquote((cells.get(column) or "").strip())

    return Row(
        line=line,
        category_id=text("category_id"),
        name=" ".join(text("name").split()),
        codes=tuple(_code(entry, line) for entry in _split(text("codes"), ";") if entry.strip()),
        merge_into=text("merge_into"),
    )


def _code(entry: str, line: int) -> Code:
    scheme, value, meaning = ([_unescape(p).strip() for p in _split(entry, ":", 3)] + ["", ""])[:3]
    if not scheme or not value:
        raise ConfigError(f"line {line}: a code is SCHEME:VALUE:MEANING, such as SCT:51185008:Chest, not {entry!r}")
    return Code(scheme=scheme, value=value, meaning=meaning)


def _rows_by_id(catalog: Catalog, rows: Iterable[Row]) -> dict[str, Row]:
    """The rows that ask for something, checked. Raises ConfigError."""
    known = {c.id: c for c in catalog.categories}
    by_id: dict[str, Row] = {}
    lines: dict[str, int] = {}
    for row in rows:
        if row.category_id in lines:
            first = lines[row.category_id]
            raise ConfigError(f"line {row.line}: category {row.category_id!r} is on line {first} already; keep one")
        lines[row.category_id] = row.line
        if _is_merged(known, row):
            continue
        for id_ in filter(None, (row.category_id or "?", row.merge_into)):
            if id_ not in known:
                raise ConfigError(f"line {row.line}: there is no category {id_!r}; export the names for the ids")
            if known[id_].status is CategoryStatus.RETIRED:
                raise ConfigError(f"line {row.line}: category {id_!r} is retired; export the names for those in use")
        by_id[row.category_id] = row
    return by_id


def _is_merged(known: Mapping[str, Category], row: Row) -> bool:
    """Whether the row's category is retired and has ended, by the lineages, in the same category as its target."""
    source = known.get(row.category_id)
    if source is None or source.status is not CategoryStatus.RETIRED or row.merge_into in ("", source.id):
        return False
    retired = {c.id for c in known.values() if c.status is CategoryStatus.RETIRED}  # others end in themselves
    heirs = {before: c.id for c in known.values() for before in c.lineage if before in retired}

    def end(id_: str) -> str:
        for _ in heirs:
            id_ = heirs.get(id_, id_)
        return id_

    return end(row.merge_into) == end(source.id)


def _merge_targets(by_row: Mapping[str, Row], categories: Mapping[str, Category]) -> dict[str, str]:
    """Where each merged category ends: merging into a category that is itself merged follows it."""
    direct = {id_: row.merge_into for id_, row in by_row.items() if row.merge_into}
    targets = {}
    for source in direct:
        target = source
        for _ in categories:
            if target not in direct:
                break
            target = direct[target]
        else:
            raise ConfigError(f"line {by_row[source].line}: merging {source!r} ends nowhere: it leads back to itself")
        targets[source] = target
    return targets


def _edited(category: Category, row: Row | None) -> Category:
    if row is None or row.merge_into or (row.name, row.codes) == (category.name, category.codes):
        return category
    return replace(category, name=row.name, codes=row.codes, status=CategoryStatus.NAMED)


def _merge(target: Category, source: Category) -> tuple[Category, Category]:
    """Both as they are after `source` went into `target`."""
    merged = replace(
        target,
        clusters=tuple(sorted(target.clusters + source.clusters)),
        lineage=(*target.lineage, source.id),
        status=CategoryStatus.NAMED,
        fit_images=target.fit_images + source.fit_images,
        terms=_pooled_terms(target, source),
    )
    return merged, replace(source, clusters=(), fit_images=0, status=CategoryStatus.RETIRED)


def _pooled_terms(*categories: Category) -> tuple[Term, ...]:
    """Terms with their shares over the images of all; a term that a category does not list counts as absent there."""
    total = max(1, sum(c.fit_images for c in categories))
    counts: dict[tuple[str, str], float] = {}
    for c in categories:
        for t in c.terms:
            counts[t.attribute, t.value] = counts.get((t.attribute, t.value), 0.0) + t.share * c.fit_images
    terms = (Term(attribute=a, value=v, share=round(count / total, 4)) for (a, v), count in counts.items())
    return tuple(sorted(terms, key=lambda t: -t.share))


def _check_names(categories: Iterable[Category], by_row: Mapping[str, Row]) -> None:
    taken: dict[str, str] = {}
    for c in categories:
        if c.status is CategoryStatus.RETIRED:
            continue
        row = by_row.get(c.id)
        where = f"line {row.line}: " if row else ""
        if not c.name or len(c.name) > LONGEST_NAME or not c.name.isprintable():
            raise ConfigError(f"{where}category {c.id!r} needs a name of 1 to {LONGEST_NAME} printable characters")
        if c.name.casefold() == UNKNOWN:
            raise ConfigError(f"{where}the name {UNKNOWN!r} is reserved for outliers; choose another")
        if c.name.casefold() in taken:
            other = taken[c.name.casefold()]
            raise ConfigError(f"{where}the name {c.name!r} is also that of {other!r}; rename one or use merge_into")
        taken[c.name.casefold()] = c.id


def _split(text: str, separator: str, most: int | None = None) -> list[str]:
    """Split at separators that have no backslash before them, into at most `most` parts."""
    parts, escaped = [""], False
    for c in text:
        if c == separator and not escaped and (most is None or len(parts) < most):
            parts.append("")
        else:
            parts[-1] += c
        escaped = c == "\\" and not escaped
    return parts


def _escape(text: str) -> str:
    return re.sub(r"([:;\\])", r"\\\1", text)


def _unescape(text: str) -> str:
    return re.sub(r"\\([:;\\])", r"\1", text)


def _quote(cell: str) -> str:
    return f"'{cell}" if _FORMULA.match(cell) else cell


def _unquote(cell: str) -> str:
    return cell[1:] if _QUOTED.match(cell) else cell
