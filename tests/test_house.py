"""The house around the code: folders, licences, pins, the Makefile, what is installed and what is shipped."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ["deepmcat", "deepmcat_client", "deepmcat_core", "deepmcat_server", "deepmcat_trainer"]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z0-9-]+):.*## ", MAKEFILE, re.MULTILINE))
DEV = PROJECT["dependency-groups"]["dev"]


def requirements(*extras: str) -> list[Requirement]:
    """What the project asks for: the base install and `extras`, with the extras that those bring."""
    wanted = list(PROJECT["project"]["dependencies"])
    for extra in extras:
        wanted += PROJECT["project"]["optional-dependencies"][extra]
    brought = {extra for text in wanted for extra in Requirement(text).extras if text.startswith("deepmcat[")}
    own = [Requirement(text) for text in wanted if not text.startswith("deepmcat[")]
    return own + (requirements(*brought) if brought else [])


def pins(name: str) -> dict[str, str]:
    """The pins of a constraints file by canonical name."""
    lines = (ROOT / "constraints" / name).read_text().splitlines()
    rows = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(package): version for package, version in rows}


def installed_closure(roots: list[str]) -> dict[str, importlib.metadata.Distribution]:
    """Every installed distribution that `roots` bring, by canonical name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    todo, seen = [Requirement(root) for root in roots], set()
    while todo:
        requirement = todo.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        distribution = importlib.metadata.distribution(requirement.name)
        found[canonicalize_name(requirement.name)] = distribution
        for text in distribution.requires or []:
            child = Requirement(text)
            extras = [{"extra": extra} for extra in ["", *requirement.extras]]
            if child.marker is None or any(child.marker.evaluate(extra) for extra in extras):
                todo.append(child)
    return found


def licences(distribution: importlib.metadata.Distribution) -> str:
    """What a distribution says of its licence: the expression, the classifiers, the first line of the field."""
    metadata = distribution.metadata
    classifiers = [c for c in metadata.get_all("Classifier") or [] if c.startswith("License")]
    first_line = (metadata.get("License") or "").strip().partition("\n")[0]
    return " ".join([metadata.get("License-Expression") or "", first_line, *classifiers])


def make(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run make as from a terminal, also where these tests run under make."""
    outer = {"MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS"}
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(["make", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(name="bare_clone")
def bare_clone_fixture(tmp_path: Path) -> Path:
    """What `make setup` reads, in a folder without an environment."""
    for name in ("Makefile", "pyproject.toml", "constraints"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.mark.parametrize("folder", ["protos", "server", "trainer", "clients", "tests", "core", "docs", "benchmarks"])
def test_the_rooms_are_where_the_plan_has_them(folder: str) -> None:
    """The top-level folders that docs/architecture.md draws exist."""
    assert (ROOT / folder).is_dir()


def test_the_licence_is_apache_2() -> None:
    """The file and the metadata name the same licence."""
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()
    assert PROJECT["project"]["license"] == "Apache-2.0"


def test_no_dependency_is_under_the_gpl() -> None:
    """Installing any of our extras brings nothing that only the GPL or AGPL allows to pass on."""
    roots = ["deepmcat[trainer,server,pretrained,cpu,dicom,demo,triton,otel]", *DEV]
    ours = {name: licences(distribution) for name, distribution in installed_closure(roots).items()}

    gpl = {name: text for name, text in ours.items() if re.search(r"(?<!L)(?<!Lesser )\bA?GPL|General Public", text)}

    assert gpl == {}


def test_the_gpl_decoder_is_not_installed() -> None:
    """pylibjpeg-libjpeg is GPL-3.0, and pydicom would use it silently; imagecodecs reads what it reads."""
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("pylibjpeg-libjpeg")


def test_the_python_versions_agree() -> None:
    """Metadata, classifiers, the linters' target and the Makefile's sentence name the same range, 3.11 to 3.13."""
    allowed = SpecifierSet(PROJECT["project"]["requires-python"])
    named = [c.rpartition(" ")[2] for c in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", c)]

    assert named == [v for v in (f"3.{minor}" for minor in range(8, 20)) if allowed.contains(f"{v}.0")]
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + named[0].replace(".", "")
    assert PROJECT["tool"]["mypy"]["python_version"] == named[0]
    assert f"({named[0]} to {named[-1]})" in MAKEFILE


@pytest.mark.parametrize(
    ("file", "extras"),
    [
        ("cpu.txt", ["trainer", "server", "pretrained", "cpu", "dicom", "demo", "otel"]),
        ("gpu.txt", ["trainer", "server", "pretrained", "gpu", "dicom", "demo", "otel"]),
    ],
)
def test_pins_are_within_the_ranges(file: str, extras: list[str]) -> None:
    """Every requirement of the extras and the development tools is pinned, to a version that pyproject allows."""
    pinned = pins(file)

    outside = [
        str(r)
        for r in [*requirements(*extras), *map(Requirement, DEV)]
        if canonicalize_name(r.name) not in pinned or not r.specifier.contains(pinned[canonicalize_name(r.name)])
    ]

    assert outside == []


def test_the_tests_run_with_the_pins() -> None:
    """What is installed here is what constraints/cpu.txt says, so that a green run means something elsewhere."""
    closure = installed_closure(["deepmcat[trainer,server,pretrained,cpu,dicom,demo,triton,otel]", *DEV])
    pinned = pins("cpu.txt")

    assert {
        name: distribution.version
        for name, distribution in closure.items()
        if name in pinned and Version(distribution.version).public != pinned[name]
    } == {}


def test_gpu_pins_share_one_cuda_major_version() -> None:
    """torch and faiss of constraints/gpu.txt load one CUDA runtime, and only one faiss is pinned."""
    pinned = pins("gpu.txt")

    assert not [name for name in pinned if re.search(r"-cu(?!12)\d+$", name)]
    assert [name for name in pinned if name.startswith("faiss")] == ["faiss-gpu"]
    assert pinned["cuda-bindings"].startswith("12.")


def test_code_is_generated_with_the_pinned_tools() -> None:
    """The version in the generated code, the pin and the development requirement are one."""
    generated = (ROOT / "protos/deepmcat/v1/categorization_pb2_grpc.py").read_text()
    version = re.search(r"GRPC_GENERATED_VERSION = '(.+)'", generated)

    assert version is not None
    assert pins("cpu.txt")["grpcio-tools"] == version[1]
    assert f"grpcio-tools=={version[1]}" in DEV


def test_every_make_target_is_explained() -> None:
    """`make` alone lists every target, each with a line."""
    phony = re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)
    done = make()

    assert phony is not None
    assert set(phony[1].split()) == TARGETS
    assert all(f"make {target} " in done.stdout for target in TARGETS)


def test_ci_calls_targets_that_exist() -> None:
    """.ci/run can be executed and runs the README's test command first of its checks."""
    script = ROOT / ".ci/run"
    called = re.findall(r"^section \S+ make (\S+)(?: ARGS=.*)?$", script.read_text(), re.MULTILINE)

    assert os.access(script, os.X_OK)
    assert called[:2] == ["setup", "test"]
    assert set(called) <= TARGETS


@pytest.mark.parametrize(
    ("fake", "sentence"),
    [
        (None, "There is no"),
        ('case "$1" in --version) echo Python 3.10.1;; *) exit 1;; esac', "Python 3.10.1 is not one"),
        ('case "$2" in *ensurepip*) exit 1;; *print*) echo python3.12-venv;; esac', "apt install python3.12-venv"),
    ],
    ids=["missing", "too old", "no venv"],
)
def test_a_missing_prerequisite_gets_a_sentence(bare_clone: Path, fake: str | None, sentence: str) -> None:
    """`make setup` names the package to install, and changes nothing."""
    python = bare_clone / "fake-python"
    if fake is not None:
        python.write_text(f"#!/bin/sh\n{fake}\n")
        python.chmod(0o755)

    done = make("setup", f"PYTHON={python}", cwd=bare_clone)

    assert done.returncode == 2
    assert sentence in done.stderr
    assert "apt install" in done.stderr
    assert not (bare_clone / ".venv").exists()


def test_torch_comes_from_the_index_that_is_named(bare_clone: Path) -> None:
    """`make setup TORCH_INDEX=URL` installs the pinned torch from there, before anything could bring another."""
    lines = make("--dry-run", "setup", "TORCH_INDEX=https://example.org/cpu", cwd=bare_clone).stdout.splitlines()

    installs = [line for line in lines if "pip install" in line]
    assert f"--no-deps --index-url https://example.org/cpu torch=={pins('cpu.txt')['torch']}" in installs[1]
    assert "-e '.[" in installs[2]
    assert not [line for line in installs if "example.org" in line and "torch==" not in line]


def test_the_wheel_has_the_five_packages_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shipped: our packages with their types and the generated code, no tests, no top-level `server`."""
    build = pytest.importorskip("hatchling.build")
    monkeypatch.chdir(ROOT)

    with zipfile.ZipFile(tmp_path / build.build_wheel(str(tmp_path))) as wheel:
        names = wheel.namelist()

    top = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert sorted(top) == PACKAGES
    assert {f"{package}/py.typed" for package in PACKAGES if package != "deepmcat"} <= set(names)
    assert "deepmcat/v1/categorization_pb2.pyi" in names


def test_the_changelog_speaks_of_this_version() -> None:
    """CHANGELOG.md has a section for the version in pyproject.toml, or an unreleased one."""
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert headings[0] in {"Unreleased", PROJECT["project"]["version"]}
