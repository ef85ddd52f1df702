"""What artifacts a server has: loaded, and lying at its paths."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from deepmcat_core.artifact import identify
from deepmcat_core.errors import ArtifactError
from deepmcat_server.lines import Line
from deepmcat_server.rollout import Rollout
from deepmcat_server.versions import Found

State = Literal["available", "loaded", "in_force"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One artifact. name: empty for a loaded one that belongs to none. artifact_id: empty where it cannot be read."""

    name: str = ""
    version: str = ""
    artifact_id: str
    state: State
    size_bytes: int
    line: Line | None = None


async def inventory(rollout: Rollout) -> list[Entry]:
    """All that there is, by name; of a name, what is loaded first."""
    entries: list[Entry] = []
    for name in sorted(rollout.lines.in_force):
        found = await rollout.found(name)
        entries += _of_name(rollout, name, await asyncio.to_thread(_identified, found))
    listed = {entry.line for entry in entries}
    return entries + [_loaded("", "", line, "loaded") for line in rollout.lines if line not in listed]


def entry(rollout: Rollout, name: str, line: Line) -> Entry:
    """A loaded one, without a look at the disk."""
    return _loaded(name, "", line, "in_force" if rollout.lines.in_force.get(name) is line else "loaded")


def _of_name(rollout: Rollout, name: str, found: list[tuple[str, Found]]) -> Iterator[Entry]:
    lines, by_id = rollout.lines, dict(found)
    in_force = lines.in_force[name]
    loaded = [in_force, *reversed(lines.kept(name))]
    loaded += [line for id_ in by_id if (line := lines.loaded(id_)) is not None and line not in loaded]
    for line in loaded:
        version = by_id[line.artifact_id].version if line.artifact_id in by_id else ""
        yield _loaded(name, version, line, "in_force" if line is in_force else "loaded")
    for id_, each in found:
        if lines.loaded(id_) is None:
            yield Entry(name=name, version=each.version, artifact_id=id_, state="available", size_bytes=each.size_bytes)


def _loaded(name: str, version: str, line: Line, state: State) -> Entry:
    return Entry(
        name=name, version=version, artifact_id=line.artifact_id, state=state, size_bytes=line.size_bytes, line=line
    )


def _identified(found: tuple[Found, ...]) -> list[tuple[str, Found]]:
    return [(_id(each), each) for each in found]


def _id(found: Found) -> str:
    try:
        return identify(found.path)
    except ArtifactError:
        return ""
