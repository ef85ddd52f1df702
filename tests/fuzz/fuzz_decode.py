"""Coverage-guided fuzzing of decoding, by atheris: files that reach new code are kept and damaged further.

    python -m tests.fuzz.fuzz_decode FOLDER [-flag=value …]     flags of libFuzzer: -max_total_time=60, FILE to run one

FOLDER/seeds is read, FOLDER/corpus grows, FOLDER/findings gets what breaks a promise. A codec that crashes ends the
process, and libFuzzer leaves the file in FOLDER/findings too.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["pydicom", "deepmcat_core"]):
    import deepmcat_core.header
    import deepmcat_core.planes  # noqa: F401 - to instrument them before anything else imports them

from . import damage
from .promises import BrokenPromise, check

_ANY = tuple(damage.ALL)
_DICOM = (*damage.BYTES, *damage.DICOM)


class Target:
    """What libFuzzer calls. Broken promises are written down once each, and the run goes on."""

    def __init__(self, findings: Path) -> None:
        self._findings = findings
        self._seen: set[str] = set()

    def run(self, data: bytes) -> None:
        """Check one file."""
        if not data:
            return
        try:
            check(data)
        except BrokenPromise as broken:
            name = hashlib.sha256(broken.kind.encode()).hexdigest()[:12]
            if name not in self._seen:
                self._seen.add(name)
                (self._findings / f"broken-{name}").write_bytes(data)


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Damage that knows the structure three times in four, libFuzzer's own otherwise."""
    rng = Random(seed)
    if data and rng.random() < 0.75:
        names = _DICOM if data[128:132] == b"DICM" else _ANY
        return damage.damaged(data, [(rng.choice(names), rng.randrange(2**32))])[:max_size]
    mutated: bytes = atheris.Mutate(data, max_size)
    return mutated


def main() -> None:
    """Fuzz until libFuzzer has had enough."""
    folder = Path(sys.argv[1])
    flags = [argument for argument in sys.argv[2:] if argument.startswith("-")]
    files = [argument for argument in sys.argv[2:] if not argument.startswith("-")]
    findings = folder / "findings"
    for made in (folder / "corpus", folder / "seeds", findings):
        made.mkdir(parents=True, exist_ok=True)
    inputs = files or [str(folder / "corpus"), str(folder / "seeds")]
    options = ["-max_len=65536", "-timeout=30", "-rss_limit_mb=2048", f"-artifact_prefix={findings}/"]
    atheris.Setup([sys.argv[0], *options, *flags, *inputs], Target(findings).run, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
