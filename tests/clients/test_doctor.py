"""What `deepmcat doctor` makes of an install, told by a list of distributions."""

from __future__ import annotations

import json

import pytest

from deepmcat_client import cli
from deepmcat_client.commands.doctor import Check, Status, examine

CLIENT = {"deepmcat": "0.1.0", "grpcio": "1.85.1", "protobuf": "6.33.6", "typer": "0.29", "rich": "15.0"}
REQUIRES = [
    "grpcio>=1.81.1",
    "numpy>=2; extra == 'core'",
    'deepmcat[core]; extra == "server"',
    "uvloop>=0.21; (platform_system != 'Windows') and extra == 'server'",
    "faiss-cpu>=1.12; extra == 'cpu'",
    "faiss-gpu>=1.15; extra == 'gpu'",
]


def named(distributions: dict[str, str]) -> dict[str, Check]:
    """The checks by name."""
    return {check.name: check for check in examine(distributions, REQUIRES)}


def test_two_faiss_distributions_fail() -> None:
    """Both install the same folder: doctor fails and names both and the way out."""
    check = named({**CLIENT, "faiss-cpu": "1.15.1", "faiss-gpu-cu12": "1.14.1"})["faiss"]

    assert check.status is Status.FAIL
    assert "faiss-cpu 1.15.1, faiss-gpu-cu12 1.14.1" in check.detail
    assert "pip uninstall faiss-cpu faiss-gpu-cu12" in check.detail


def test_a_client_install_is_whole() -> None:
    """Nothing that a client does not need is a failure or a warning."""
    assert {check.status for check in examine(CLIENT, REQUIRES)} == {Status.OK, Status.NOTE}


@pytest.mark.parametrize(
    ("version", "status"), [("6.33.4", "FAIL"), ("6.33.5", "ok"), ("7.36.2", "ok"), ("8.0.0", "FAIL")]
)
def test_protobuf_has_to_fit(version: str, status: str) -> None:
    """From 6.33.5 to below 8."""
    assert named({**CLIENT, "protobuf": version})["protobuf"].status == status


def test_helpers_of_grpc_that_need_protobuf_7_are_told() -> None:
    """grpcio-reflection 1.83 does not go with protobuf 6."""
    assert named({**CLIENT, "grpcio-reflection": "1.83.0"})["grpc"].status is Status.WARN
    assert named({**CLIENT, "grpcio-reflection": "1.83.0", "protobuf": "7.35.1"})["grpc"].status is Status.OK


def test_a_decoder_under_the_gpl_is_told() -> None:
    """pylibjpeg-libjpeg is no part of DeepMCAT and brings its own licence."""
    assert named({**CLIENT, "pylibjpeg-libjpeg": "2.3"})["licences"].status is Status.WARN


def test_extras_name_what_they_lack() -> None:
    """An extra counts the extras it refers to, and says the line that completes it."""
    checks = named({**CLIENT, "uvloop": "0.23"})

    assert checks["[server]"].detail == "lacks numpy: pip install 'deepmcat[server]'"
    assert named({**CLIENT, "uvloop": "0.23", "numpy": "2.4"})["[server]"].detail == "complete"


def test_one_of_cpu_and_gpu_is_enough() -> None:
    """With [cpu] complete nobody is told to install [gpu] as well."""
    assert "[gpu]" not in named({**CLIENT, "faiss-cpu": "1.15.1"})


@pytest.mark.slow
def test_this_install_can_be_examined(capsys: pytest.CaptureFixture[str]) -> None:
    """The real thing, as JSON for a bug report; it imports torch."""
    code = cli.main(["doctor", "--json"])

    checks = json.loads(capsys.readouterr().out)["checks"]
    assert {"python", "torch", "faiss", "engines", "decoders", "protobuf", "grpc"} <= {
        check["name"] for check in checks
    }
    assert code == (2 if any(check["status"] == "FAIL" for check in checks) else 0)
