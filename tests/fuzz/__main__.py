"""`make fuzz`: look for bytes that break a promise of decoding, in two processes, for as long as is asked.

    Hypothesis   files of every kind, damaged step by step, headers that lie, raw planes: checked in a worker
    atheris      the same files and damage, guided by the coverage of our code and pydicom's

Prints how much was tried and what was found, and leaves what was found, made small, in a folder. Exit code 1 then.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path

from . import specimens
from .guided import GuidedRun
from .inspection import Inspector, inspecting
from .minimise import minimised
from .promises import BrokenPromise
from .unguided import UnguidedRun


def main() -> int:
    """Fuzz; 1 if something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=120, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**31, help="for the same run again")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="folder (default: %(default)s)")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    print(f"seed {options.seed}, {options.seconds} s, {specimens.write(options.out / 'seeds')} files to start from")

    with inspecting() as inspector:
        unguided = UnguidedRun(inspector, options.seed)
        with GuidedRun(options.out, options.seconds, options.seed) as guided:
            unguided.run(deadline)
            suspects = guided.wait()
        print(unguided.summary())
        print(guided.summary())
        kept = [_keep(data, inspector, options.out / "found") for data in [*unguided.findings, *suspects]]
    found = sorted({line for line in kept if line})
    if guided.failures:
        found.append(f"FAILED: atheris ended early {guided.failures} times; {options.out}/atheris.log says why")
    print("\n".join(["", *found]) if found else "nothing found")
    return 1 if found else 0


def _keep(data: bytes, inspector: Inspector, folder: Path) -> str:
    """Write down what breaks a promise, made small, and say so; "" if it breaks none when tried once more."""
    broken = _broken(data, inspector)
    if not broken:
        return ""
    small = minimised(data, lambda smaller: _broken(smaller, inspector) == broken)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(broken.encode()).hexdigest()[:12]
    path.write_bytes(small)
    return f"FOUND {path}, {len(small)} bytes: {broken}"


def _broken(data: bytes, inspector: Inspector) -> str:
    try:
        inspector.check(data)
    except BrokenPromise as broken:
        return broken.kind
    return ""


if __name__ == "__main__":
    sys.exit(main())
