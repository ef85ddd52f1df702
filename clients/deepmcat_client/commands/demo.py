"""`deepmcat demo`: the whole path on real images, one visible command after another.

images ─prepare─► dataset ─train─► artifact ─serve─► server ◄─stream─ this process
                     └───────────sheets──────┘          └─metrics─► counted once more
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepmcat_client.async_client import MAX_IMAGE_BYTES
from deepmcat_client.client import Client
from deepmcat_client.commands.doctor import Distributions, installed, missing
from deepmcat_client.commands.progress import image_progress
from deepmcat_client.commands.tables import output, terms
from deepmcat_client.demo_server import DemoServer
from deepmcat_client.errors import (
    BY_REASON,
    ClientError,
    CorruptImage,
    ImageTooLarge,
    InvalidRequest,
    MissingExtra,
    NotAnImage,
    RequestError,
    ServerError,
    TryAgain,
    UnreadableFile,
)
from deepmcat_client.files import find_files
from deepmcat_client.results import Catalog, Categorization

EXTRAS = ("server", "trainer", "pretrained", "cpu")
PACKAGES = {"pydicom": "data/test_files", "data_store": "data"}  # data_store is what pydicom-data installs
LOOPBACK = "127.0.0.1:0"
COUNTED_WITHIN_S = 2.0  # an image is counted when its answer is done, which can be just after we have it

MARKER = "deepmcat-demo.txt"
OURS = ("dataset", "artifact", "sheets", "images.txt", "ready.json", "serve.log", MARKER)


def command(
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Your own images. Without it, those that come with pydicom.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where everything goes.")] = Path("demo"),
) -> None:
    """Prepare, train, serve and categorize: the whole path on real DICOM images, in a few minutes on two cores.

    Uses loopback only and leaves nothing running. Training here means `stages`: a pretrained encoder and clustering.
    """
    require_packages(installed())
    if data is not None and next(find_files([data]), None) is None:
        raise InvalidRequest(f"there is no file in {data}")
    if data is not None and not data.is_dir():
        raise InvalidRequest(f"{data} is a file; --data takes a folder of images")
    make_room(out)
    _Demo(output(), out, data).run()


def packaged_images() -> list[Path]:
    """The DICOM files in the packages pydicom and pydicom-data, those with a preamble or named .dcm."""
    folders = [_package_folder(package, inner) for package, inner in PACKAGES.items()]
    return [file for file in find_files([f for f in folders if f is not None]) if _may_be_dicom(file)]


def require_packages(found: Distributions) -> None:
    """Refuse at once what would fail half-way. [gpu] does as well as [cpu]. Raises MissingExtra."""
    for extra in EXTRAS:
        lacking = missing(extra, found)
        if lacking and not (extra == "cpu" and not missing("gpu", found)):
            raise MissingExtra(lacking[0], ",".join(EXTRAS))


class _Demo:
    """One run, top to bottom."""

    def __init__(self, console: Console, out: Path, data: Path | None) -> None:
        self._console = console
        self._out = out
        self._data = data
        self._started = time.monotonic()

    def run(self) -> None:
        """The story."""
        self._prepare()
        self._deepmcat("train", self._out / "dataset", "--out", self._out / "artifact", "--recipe", "stages")
        self._deepmcat("sheets", self._out / "artifact", self._out / "dataset", "--out", self._out / "sheets")
        arguments = [str(self._out / "artifact"), "--listen", LOOPBACK, "--admin", LOOPBACK]
        self._show(["serve", *arguments])
        with DemoServer(arguments, self._out) as server:
            self._say(f"serving on {server.listen}, metrics on http://{server.admin}/metrics")
            sent = self._categorize(server)
            self._compare(sent, server)
            self._deepmcat("describe", "--server", server.listen)
            server.stop()
            self._say("\nSIGTERM: the server has drained and ended with exit code 0")
        self._farewell()

    def _prepare(self) -> None:
        options: list[str] = []
        if self._data is None:
            files = packaged_images()
            (self._out / "images.txt").write_text("".join(f"{file.resolve()}\n" for file in files), encoding="utf-8")
            options = ["--frames", "8", "--split", "100/0/0"]
            self._say(
                f"{len(files)} real DICOM files from the packages {_packages_found()}, many of them the same image in "
                "another encoding.\nOutlier verdicts need about 1,000 images to calibrate on; here all are fitted and "
                "there are no verdicts."
            )
        self._deepmcat("prepare", self._source(), "--out", self._out / "dataset", *options)

    def _source(self) -> Path:
        return self._out / "images.txt" if self._data is None else self._data

    def _files(self) -> Iterable[Path]:
        return packaged_images() if self._data is None else find_files([self._data])

    def _categorize(self, server: DemoServer) -> Counter[str]:
        """Stream everything through the client and show what came back. The number of images sent, by result."""
        self._say("\nstreaming the same files through deepmcat_client.Client …")
        sent: Counter[str] = Counter()
        kept_back: Counter[str] = Counter()
        by_category: Counter[str] = Counter()
        started = time.monotonic()
        with Client(server.listen) as client, image_progress(self._files) as advance:
            catalog = client.list_categories()
            for file, answer in client.categorize_stream((file, file) for file in self._files()):
                advance()
                if isinstance(answer, Categorization):
                    sent["ok"] += 1
                    by_category[answer.assignment.category_id] += 1
                else:
                    (sent if _was_sent(file, answer) else kept_back)[answer.reason.lower()] += 1
        took_s = time.monotonic() - started
        self._console.print(_category_counts(catalog, by_category))
        others = ", ".join(f"{n} {_result_name(result)}" for result, n in (sent + kept_back).items() if result != "ok")
        self._say(f"{sent['ok']} images answered in {took_s:.1f} s" + (f"; {others}" if others else ""))
        return sent

    def _compare(self, sent: Counter[str], server: DemoServer) -> None:
        """The server's own count has to be ours."""
        expected, deadline = _final(sent), time.monotonic() + COUNTED_WITHIN_S
        while (counted := _final(server.images_by_result())) != expected and time.monotonic() < deadline:
            time.sleep(0.1)
        shown = ", ".join(f"{result} {count}" for result, count in sorted(counted.items()))
        if counted != expected:
            raise ServerError(f"the server's metrics count {shown}, but {expected} were sent")
        self._say(f"deepmcat_images_total, from the server's own metrics: {shown}, exactly what was sent")

    def _deepmcat(self, name: str, *arguments: Path | str) -> None:
        """Run one of our commands as a person would, and stop where it fails."""
        shown = [name, *map(str, arguments)]
        self._show(shown)
        code = subprocess.run([sys.executable, "-m", "deepmcat_client", *shown], check=False).returncode
        if code != 0:
            raise RequestError(f"`deepmcat {name}` ended with exit code {code}; its message is above")

    def _show(self, arguments: Sequence[str]) -> None:
        self._console.print(Text(f"\n$ deepmcat {shlex.join(arguments)}", style="bold"), soft_wrap=True)
        self._flush()

    def _say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)
        self._flush()

    def _flush(self) -> None:
        self._console.file.flush()  # the commands write to the same stdout

    def _farewell(self) -> None:
        out = shlex.quote(str(self._out))
        self._say(
            f"\nDone in {time.monotonic() - self._started:.0f} s. In {self._out}: dataset/, artifact/, and sheets/, "
            "which has a page of images for each category."
        )
        following = {
            f"deepmcat serve {out}/artifact": "serve it; then deepmcat categorize PATH --server HOST:PORT",
            f"deepmcat names export {out}/artifact names.csv": "name its categories; then names import",
            "deepmcat demo --data DIR --out DIR2": "the same on your own images",
        }
        width = max(map(len, following))
        self._say("Next:\n" + "\n".join(f"  {line:{width}}   {why}" for line, why in following.items()))


def _category_counts(catalog: Catalog, counts: Counter[str]) -> Table:
    table = Table("category", box=None, pad_edge=False, header_style="bold")
    table.add_column("images", justify="right")
    table.add_column("what its images have in common")
    by_id = {category.category_id: category for category in catalog.categories}
    for category_id, count in counts.most_common():
        category = by_id.get(category_id)
        table.add_row(
            Text(category.name if category else category_id), str(count), Text(terms(category) if category else "")
        )
    return table


def _was_sent(file: Path, answer: ClientError) -> bool:
    """Whether the server has seen the file: what cannot be read, is empty, or is over the client's limit stays here."""
    if isinstance(answer, UnreadableFile):
        return False
    return not (isinstance(answer, ImageTooLarge | CorruptImage) and not 0 < file.stat().st_size <= MAX_IMAGE_BYTES)


def _final(results: Mapping[str, int]) -> dict[str, int]:
    """Without what the client sends again, which the server counts each time."""
    again = {error.reason.lower() for error in BY_REASON.values() if issubclass(error, TryAgain)}
    return {result: count for result, count in results.items() if result not in again}


def _result_name(result: str) -> str:
    return "not images (reports, plans, waveforms …)" if result == NotAnImage.reason.lower() else result.upper()


def make_room(out: Path) -> None:
    """An empty folder: new, empty already, or the one of an earlier demo, of which only our own things are removed."""
    if out.exists() and not (out.is_dir() and ((out / MARKER).is_file() or not any(out.iterdir()))):
        raise InvalidRequest(f"{out} exists and is not an earlier demo; choose another --out or remove it")
    for path in (out / name for name in OURS):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text("Made by `deepmcat demo`, which replaces it when it runs again.\n", encoding="utf-8")


def _package_folder(package: str, inner: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / inner
    return folder if folder.is_dir() else None


def _packages_found() -> str:
    if _package_folder("data_store", PACKAGES["data_store"]) is None:
        return "pydicom (pip install pydicom-data brings more)"
    return "pydicom and pydicom-data"


def _may_be_dicom(file: Path) -> bool:
    if file.suffix == ".dcm":
        return True
    with file.open("rb") as opened:
        return opened.read(132)[128:] == b"DICM"
