"""Generates the Python code of the wire contract, beside its .proto files.

    python protos/generate.py            write it
    python protos/generate.py --check    exit 1 where what is committed differs from what would be written

Run by `make protos` and `make lint` with the grpcio-tools pinned in constraints/: code of later ones needs protobuf 7.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

PROTOS = Path(__file__).parent
CONTRACTS = ("deepmcat/v1/categorization.proto", "deepmcat/v1/admin.proto")
GENERATED = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")


def generate(target: Path) -> list[Path]:
    """Write the code below `target`; returns the files' paths relative to it."""
    out = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *out, *CONTRACTS], check=True)
    return [Path(contract.removesuffix(".proto") + ending) for contract in CONTRACTS for ending in GENERATED]


def stale() -> list[str]:
    """The committed files that differ from what would be generated now."""
    with tempfile.TemporaryDirectory() as folder:
        files = generate(Path(folder))
        return [str(f) for f in files if (PROTOS / f).read_bytes() != (Path(folder) / f).read_bytes()]


def main(arguments: list[str]) -> int:
    """Generate, or with --check compare."""
    if arguments != ["--check"]:
        generate(PROTOS)
        return 0
    if files := stale():
        sys.stderr.write(f"generated code is stale ({', '.join(files)}): run `make protos`\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
