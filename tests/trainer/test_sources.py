"""Sources are lazy sequences in a fixed order, and nothing in them can stop a run."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepmcat_core.errors import ConfigError, CorruptImage, ImageError, ImageTooLarge
from deepmcat_trainer.locations import CorruptArchive, Unreadable
from deepmcat_trainer.sources import SourceItem, Walk, items, open_sources

LIMIT = 10_000
CONTENTS = {"b/2.bin": b"two" * 500, "a/1.bin": b"one", "c.bin": b"", "b/1.bin": os.urandom(999)}


def walked(*arguments: Path | str, **options: object) -> list[SourceItem]:
    sources = open_sources([str(argument) for argument in arguments])
    return list(items(sources, Walk(max_bytes=LIMIT, **options)))  # type: ignore[arg-type]


def outcome(item: SourceItem) -> bytes | str:
    try:
        return item.location.read(LIMIT)
    except ImageError as error:
        return error.reason


def write_tree(root: Path, contents: dict[str, bytes]) -> Path:
    for name, data in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_zip(path: Path, members: Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


ARCHIVES: dict[str, Callable[[Path, Iterable[tuple[str, bytes]]], Path]] = {
    "a.tar": write_tar,
    "a.tar.gz": lambda path, members: write_tar(path, members, "w:gz"),
    "a.tgz": lambda path, members: write_tar(path, members, "w:gz"),
    "a.tar.bz2": lambda path, members: write_tar(path, members, "w:bz2"),
    "a.tar.xz": lambda path, members: write_tar(path, members, "w:xz"),
    "a.zip": write_zip,
    "stored.ZIP": lambda path, members: write_zip(path, members, zipfile.ZIP_STORED),
    "lzma.zip": lambda path, members: write_zip(path, members, zipfile.ZIP_LZMA),
}


def test_folders_are_walked_depth_first_in_sorted_order(tmp_path: Path) -> None:
    """Files come sorted by name within each directory, with locators that start at the source's name."""
    found = walked(write_tree(tmp_path / "archive", CONTENTS))

    assert [item.locator for item in found] == [f"archive/{name}" for name in sorted(CONTENTS)]
    assert {item.relative: outcome(item) for item in found} == CONTENTS
    assert [item.folder for item in found] == ["a", "b", "b", "archive"]


def test_hidden_files_and_datasets_are_left_out(tmp_path: Path) -> None:
    """Dot files, dot folders and prepared datasets are nobody's images."""
    hidden = {".x": b"", ".git/y": b"", "set/dataset.json": b"", "set/images.npy": b"", "set/report.jsonl": b""}
    write_tree(tmp_path, {"seen": b"1"} | hidden)

    assert [item.relative for item in walked(tmp_path)] == ["seen"]


def test_links_are_followed_once_and_never_in_circles(tmp_path: Path) -> None:
    """A link to a folder above ends there, and two links to one folder count it once."""
    write_tree(tmp_path / "root", {"a/1": b"1"})
    write_tree(tmp_path / "elsewhere", {"2": b"2"})
    (tmp_path / "root/a/up").symlink_to(tmp_path / "root")
    (tmp_path / "root/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "root/a")

    relatives = [item.relative for item in walked(tmp_path / "root")]

    assert relatives == ["a/1", "b/2", "b/back/1"]


def test_what_is_no_regular_file_is_passed_over_or_reported(tmp_path: Path) -> None:
    """A pipe does not hold up the walk; a link to nowhere is an item that cannot be read."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")

    assert [(item.relative, outcome(item)) for item in walked(tmp_path)] == [("nowhere", "UNREADABLE")]


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_hold_what_was_put_in(tmp_path: Path, name: str) -> None:
    """Every kind of archive gives its members' bytes in its own order, without a file on disk."""
    path = ARCHIVES[name](tmp_path / name, CONTENTS.items())

    found = walked(path)

    assert [(item.relative, outcome(item)) for item in found] == list(CONTENTS.items())
    assert [item.folder for item in found] == ["b", "a", "", "b"]
    assert [item.locator for item in found] == [f"{name}/{member}" for member in CONTENTS]
    assert list(tmp_path.iterdir()) == [path]
    assert len(walked(path, contents=False)) == len(CONTENTS)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_member_names_are_never_paths(tmp_path: Path, name: str) -> None:
    """A member named like a file outside the archive is read from the archive."""
    outside = write_tree(tmp_path, {"secret": b"outside"})
    hostile = ["../secret", str(outside / "secret"), "./x/../../secret", "a\nb", "C:\\secret"]

    found = walked(ARCHIVES[name](tmp_path / name, [(member, b"inside") for member in hostile]))

    assert [outcome(item) for item in found] == [b"inside"] * len(hostile)


def test_links_in_tars_are_not_followed(tmp_path: Path) -> None:
    """Only regular members of a tar count."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)

    assert walked(tmp_path / "a.tar") == []


def test_archives_in_folders_are_opened(tmp_path: Path) -> None:
    """A folder of zips is as good as a folder of folders."""
    (tmp_path / "archive").mkdir()
    write_zip(tmp_path / "archive/study.zip", [("series/1.bin", b"1"), ("__MACOSX/series/._1.bin", b"")])

    (item,) = walked(tmp_path / "archive")

    assert (item.relative, item.folder) == ("study.zip/series/1.bin", "series")
    assert item.absolute == str(tmp_path / "archive/study.zip/series/1.bin")


@given(cut=st.integers(0, 3 * 1536 - 1))
def test_damaged_tars_tell_of_the_damage(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """A tar that ends early gives what is before the end, and says that there is more, unless it ends in between."""
    path = tmp_path_factory.mktemp("damaged") / "a.tar"
    write_tar(path, [(f"{i}.bin", bytes([i]) * 1024) for i in range(3)])
    path.write_bytes(path.read_bytes()[:cut])

    found = [outcome(item) for item in walked(path)]

    whole = cut // 1536
    assert found[:whole] == [bytes([i]) * 1024 for i in range(whole)]
    assert all(isinstance(rest, str) for rest in found[whole:])
    assert cut % 1536 == 0 or found[whole:]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_damaged_header_is_no_end(tmp_path: Path, name: str) -> None:
    """Damage in the middle of a tar is reported: the members behind it do not vanish in silence."""
    plain = write_tar(tmp_path / "plain.tar", [(f"{i}.bin", b"x" * 512) for i in range(3)]).read_bytes()
    with (tmp_path / name).open("wb") as file:
        damaged = plain[:1024] + b"\xff" * 512 + plain[1536:]
        if name.endswith("gz"):
            import gzip

            damaged = gzip.compress(damaged)
        file.write(damaged)

    assert [outcome(item) for item in walked(tmp_path / name)] == [b"x" * 512, CorruptArchive.reason]


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.tar.xz", "a.zip"])
def test_nonsense_is_a_corrupt_archive(tmp_path: Path, name: str) -> None:
    """A file that only has an archive's name becomes one item that says so."""
    (tmp_path / name).write_bytes(b"nonsense" * 300)

    assert [outcome(item) for item in walked(tmp_path / name)] == [CorruptArchive.reason]


def test_zip_members_are_checked(tmp_path: Path) -> None:
    """A member with a wrong checksum or size is corrupt; an encrypted one cannot be read."""
    good = write_zip(tmp_path / "good.zip", [("1", b"0" * 5000)]).read_bytes()
    directory = good.index(b"PK\x01\x02")
    for name, offset, value in [("crc", 16, b"abcd"), ("size", 24, b"\x10\0\0\0"), ("flags", 8, b"\x01\0")]:
        at = directory + offset
        (tmp_path / f"{name}.zip").write_bytes(good[:at] + value + good[at + len(value) :])
    reasons = [outcome(item) for name in ("crc", "size", "flags") for item in walked(tmp_path / f"{name}.zip")]

    assert reasons == [CorruptImage.reason, CorruptImage.reason, Unreadable.reason]


@pytest.mark.parametrize("name", ["plain.bin", *ARCHIVES])
def test_size_limit_holds_everywhere(tmp_path: Path, name: str) -> None:
    """Nothing over the limit is read, whether a file of its own or a member that inflates to it."""
    big = b"\0" * (LIMIT + 1)
    path = tmp_path / name
    path.write_bytes(big) if name == "plain.bin" else ARCHIVES[name](path, [("big", big)])

    assert [outcome(item) for item in walked(path)] == [ImageTooLarge.reason]


@pytest.mark.parametrize("form", ["list.txt", "@list", "@list.txt"])
def test_lists_name_files_folders_and_archives(tmp_path: Path, form: str) -> None:
    """A list's paths count from the list's own folder; a path that is not there is reported and the rest is read."""
    write_tree(tmp_path, {"data/a.bin": b"a", "data/sub/b.bin": b"b"})
    write_zip(tmp_path / "c.zip", [("c.bin", b"c")])
    lines = ["data/sub", "", "missing", "c.zip", str(tmp_path / "data/a.bin"), "nul\0nul"]
    (tmp_path / form.removeprefix("@")).write_text("\n".join(lines))

    found = walked(f"@{tmp_path}/{form[1:]}" if form.startswith("@") else tmp_path / form)

    assert [outcome(item) for item in found] == [b"b", "UNREADABLE", b"c", b"a", "UNREADABLE"]
    assert [item.relative for item in found[:3]] == ["data/sub/b.bin", "missing", "c.zip/c.bin"]


def test_a_single_file_is_a_source(tmp_path: Path) -> None:
    """An image can be named itself."""
    (item,) = walked(write_tree(tmp_path, {"x.bin": b"x"}) / "x.bin")

    assert (item.relative, item.folder, outcome(item)) == ("x.bin", tmp_path.name, b"x")


def test_locators_are_the_same_wherever_a_source_lies(tmp_path: Path) -> None:
    """Moving an archive changes no locator, and two sources of one name do not share any."""
    first, second = (write_tree(tmp_path / place / "archive", CONTENTS) for place in "xy")

    moved = [item.locator for item in walked(second)]
    both = [item.locator for item in walked(first, second)]

    assert both[: len(CONTENTS)] == moved
    assert len(set(both)) == 2 * len(CONTENTS)


def test_a_name_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    """Old archives have names in any encoding."""
    (tmp_path / os.fsdecode(b"gr\xfc\xdf.bin")).write_bytes(b"1")

    assert [outcome(item) for item in walked(tmp_path)] == [b"1"]


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    """A wrong path is told before anything starts."""
    with pytest.raises(ConfigError, match="there is nothing at"):
        open_sources([str(tmp_path), str(tmp_path / "missing")])


def test_walking_is_lazy(tmp_path: Path) -> None:
    """The first item comes before the rest of the source is looked at."""
    write_tree(tmp_path, {"a/1": b"1", "b/2": b"2"})
    found = items(open_sources([str(tmp_path)]), Walk())

    assert next(found).relative == "a/1"
    (tmp_path / "b/3").write_bytes(b"3")
    assert [item.relative for item in found] == ["b/2", "b/3"]
