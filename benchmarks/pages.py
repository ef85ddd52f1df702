"""The measured part of a page of docs/, between its marks."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def fill(page: Path, measured: str) -> None:
    """Put `measured` between the marks of the page, in place of what is there."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{measured}\n{END}{after}", encoding="utf-8")
    print(f"written to {page}")
