"""The documents say what the code does: links, tables, commands and examples are compared with it."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
TEXTS = {name: (ROOT / name).read_text() for name in DOCUMENTS}
TARGETS = set(re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


def table(document: str, first_heading: str) -> list[list[str]]:
    """The rows of the table whose first column has this heading, cells stripped of spaces and backquotes."""
    _, found, rest = TEXTS[document].partition(f"\n| {first_heading} |")
    assert found, f"{document} has no table of {first_heading!r}"
    lines = rest.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))] for line in lines]


def blocks(document: str, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXTS[document], re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def command_lines() -> list[tuple[str, list[str]]]:
    """Every `deepmcat …` line of a shell block, with its document, continued lines joined."""
    found = []
    for document in DOCUMENTS:
        for block in blocks(document, "(?:bash|sh|shell)"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["deepmcat"]:
                    found.append((document, words[1:]))
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    """Every link to a file of this repository finds the file, and its anchor a heading."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[document]):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            broken.append(target)

    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_exist(document: str) -> None:
    """Every `make target` that a document names is in the Makefile."""
    named = re.findall(r"(?:^|`)make ((?:[a-z0-9-]+ ?)+)", TEXTS[document], re.MULTILINE)

    assert {target for targets in named for target in targets.split()} <= TARGETS


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_examples_compile_and_import(document: str) -> None:
    """Every Python example parses, and what it imports of ours is there."""
    for block in blocks(document, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("deepmcat"):
                module = importlib.import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_the_error_table_is_the_code_s() -> None:
    """docs/api.md lists every reason that can travel, with its code, whether to try again, and the client's class."""
    status = importlib.import_module("deepmcat_server.status")
    client = importlib.import_module("deepmcat_client.errors")

    outcomes = {error.reason: outcome for error, outcome in status.TABLE.items()}
    outcomes[status.INTERNAL_REASON] = status.INTERNAL
    expected = {
        (reason, outcome.code.name, "no" if outcome.retry_s is None else "yes", client.BY_REASON[reason].__name__)
        for reason, outcome in outcomes.items()
    }

    assert {tuple(row[:4]) for row in table("docs/api.md", "reason")} == expected


def test_the_methods_are_the_contract_s() -> None:
    """docs/api.md lists the methods of the service and the fields of the options."""
    pb = importlib.import_module("deepmcat.v1.categorization_pb2")
    service = pb.DESCRIPTOR.services_by_name["CategorizationService"]

    assert [row[0] for row in table("docs/api.md", "method")] == [m.name for m in service.methods]
    assert [row[0] for row in table("docs/api.md", "field")] == list(pb.CategorizeOptions.DESCRIPTOR.fields_by_name)


def test_the_manifest_s_fields_are_the_code_s() -> None:
    """docs/artifact.md explains every field of the manifest and every file of an artifact."""
    artifact = importlib.import_module("deepmcat_core.artifact")
    manifest = importlib.import_module("deepmcat_core.manifest")
    named = {name for row in table("docs/artifact.md", "field") for name in re.split(r"`, `", row[0])}
    files = {row[0].removesuffix("` …") for row in table("docs/artifact.md", "file")}

    assert named == {field.name for field in dataclasses.fields(manifest.Manifest)}
    assert files == {
        artifact.MANIFEST, artifact.ENCODER, artifact.ONNX, artifact.CENTROIDS, artifact.TREE, artifact.CALIBRATION,
        artifact.SELF_TEST, f"{artifact.CATALOG}/000001.json",
    }  # fmt: skip


def test_the_metrics_are_the_code_s() -> None:
    """docs/operations.md explains every metric that the server has, and no other."""
    metrics = importlib.import_module("deepmcat_server.metrics")
    registry = importlib.import_module("prometheus_client").CollectorRegistry()
    metrics.Metrics(registry)
    importlib.import_module("deepmcat_server.front_metrics").FrontMetrics(registry)
    registry.register(importlib.import_module("deepmcat_server.child_processes").ChildProcesses())
    families = {family.name + ("_total" if family.type == "counter" else "") for family in registry.collect()}

    assert {row[0].partition("{")[0] for row in table("docs/operations.md", "metric")} == families
    mentioned = {
        name for text in TEXTS.values() for name in re.findall(r"\bdeepmcat_[a-z_]+_(?:total|seconds|info)\b", text)
    }
    assert mentioned <= families


def test_the_server_s_settings_are_the_code_s() -> None:
    """docs/operations.md has every setting of the server with its default."""
    settings = importlib.import_module("deepmcat_server.config").Settings

    def shown(default: object) -> str:
        return ", ".join(default) if isinstance(default, tuple) else str(default).lower().removesuffix(".0")

    defaults = {name: shown(field.default) for name, field in settings.model_fields.items()}

    assert {row[0]: row[1] for row in table("docs/operations.md", "setting")} == defaults


def test_every_command_is_shown_and_no_other() -> None:
    """The README shows each command of the command line, and the documents show none that does not exist."""
    commands = importlib.import_module("deepmcat_client.cli").COMMANDS
    shown = {(document, words[0]) for document, words in command_lines()}

    assert {command for _, command in shown} <= set(commands)
    assert {command for document, command in shown if document == "README.md"} == set(commands)


def test_every_flag_that_is_shown_exists(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A command line in the documents can be typed as it stands: its flags are in the command's --help."""
    main = importlib.import_module("deepmcat_client.cli").main
    monkeypatch.setenv("COLUMNS", "200")
    helps: dict[str, str] = {}
    unknown = []
    for document, (command, *arguments) in command_lines():
        if command not in helps:
            assert main([command, "--help"]) == 0, f"deepmcat {command} --help fails"
            helps[command] = capsys.readouterr().out
        flags = [word.partition("=")[0] for word in arguments if word.startswith("--")]
        unknown += [(document, command, flag) for flag in flags if f"{flag} " not in helps[command]]

    assert unknown == []


def test_the_recipes_settings_are_the_code_s() -> None:
    """docs/training.md has every recipe and every setting of each, with the values they have."""
    recipes = importlib.import_module("deepmcat_trainer.recipes").RECIPES
    names = [
        "stages",
        "gradients",
        "frozen",
        "neighbours",
        "refine",
        "deepmcat2021-small",
        "deepmcat2021",
        "deepcluster-v2",
        "vicreg",
    ]
    rows = table("docs/training.md", "setting of a recipe")
    documented = {(name, row[0], row[1 + i]) for row in rows for i, name in enumerate(names) if row[1 + i]}

    assert {row[0] for row in table("docs/training.md", "recipe")} == set(recipes) == set(names)
    assert documented == {
        (name, key, plain(field.default))
        for name in names
        for key, field in recipes[name].settings.model_fields.items()
        if key != "final"
    }


def test_the_final_stage_s_settings_are_the_code_s() -> None:
    """docs/training.md has every setting of the final stage with its default."""
    settings = importlib.import_module("deepmcat_trainer.grouping").FinalSettings
    defaults = {f"final.{name}": plain(field.default) for name, field in settings.model_fields.items()}

    assert {row[0]: row[1] for row in table("docs/training.md", "setting of the final stage")} == defaults


def plain(value: object) -> str:
    """A setting's value as the tables have it."""
    if isinstance(value, tuple):
        return f"({', '.join(f'{part:.3g}' if part != 1 else '1.0' for part in value)})"
    return "none" if value is None else str(value)


def test_the_extras_are_the_project_s() -> None:
    """docs/architecture.md names every extra, and no other."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    assert set(re.findall(r"`\[(\w+)\]`", TEXTS["docs/architecture.md"])) == set(extras)


def test_the_encoders_are_the_code_s() -> None:
    """docs/training.md lists every encoder."""
    backbones = importlib.import_module("deepmcat_core.encoder").BACKBONES

    assert {row[0].partition(":")[0] for row in table("docs/training.md", "encoder")} == set(backbones)


def test_the_decoders_are_the_code_s() -> None:
    """docs/architecture.md names every transfer syntax that is read, with the package that decodes it."""
    codecs = importlib.import_module("deepmcat_core.codecs")
    rows = table("docs/architecture.md", "package")
    named = {uid: package for package, uids in rows for uid in re.findall(r"1\.2\.840[\d.]+\d", uids)}

    assert {uid: codecs.decoder(uid).split()[0] for uid in named} == named
    assert set(named) == {*codecs.NATIVE, *codecs.DECODER_DEPENDENCIES}


def test_the_figures_are_the_code_s() -> None:
    """docs/training.md defines every figure that `evaluate` writes."""
    evaluate = importlib.import_module("deepmcat_trainer.evaluate")
    named = {name for row in table("docs/training.md", "figure") for name in row[0].split("`, `")}

    assert named == {field.name for field in dataclasses.fields(evaluate.CutScores)} - {"k"}


def test_the_changes_of_categories_are_the_code_s() -> None:
    """docs/training.md explains everything that can become of a category."""
    change = importlib.import_module("deepmcat_trainer.lineage").Change

    assert [row[0] for row in table("docs/training.md", "change")] == [c.value for c in change]


def test_the_parts_of_a_dataset_are_the_code_s() -> None:
    """docs/training.md lists every file of a prepared dataset."""
    dataset = importlib.import_module("deepmcat_trainer.dataset")

    assert [row[0] for row in table("docs/training.md", "part")] == [
        dataset.IMAGES, dataset.MANIFEST, dataset.LABELS, dataset.SOURCES, dataset.REPORT, dataset.KEY, dataset.INFO,
    ]  # fmt: skip


def test_the_conformance_statement_s_tables_are_fresh() -> None:
    """docs/conformance.md has the tables that `make docs` would write now, each of them once."""
    specification = importlib.util.spec_from_file_location("docs_tables", ROOT / "docs" / "tables.py")
    assert specification
    assert specification.loader
    tables = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tables)
    document = TEXTS["docs/conformance.md"]

    assert sorted(re.findall(r"<!-- table: ([a-z-]+) -->", document)) == sorted(tables.TABLES)
    assert tables.written(document) == document


def test_no_document_waits_to_be_filled_in() -> None:
    """No comment in the README stands for something that is to come."""
    assert "<!--" not in (ROOT / "README.md").read_text()
