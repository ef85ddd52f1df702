"""deepmcat export: the encoder as ONNX, and a model repository that Triton loads and that answers as we do."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tests.outputs import check_outputs

from deepmcat_core.artifact import Artifact
from deepmcat_core.assigner import Assignment
from deepmcat_core.categorizer import Categorizer, load
from deepmcat_core.engine_onnx import OnnxEngine
from deepmcat_core.errors import ConfigError
from deepmcat_server.config import Settings
from deepmcat_server.opening import engine_opener
from deepmcat_trainer.commands.export import command
from deepmcat_trainer.triton_repository import write_onnx, write_repository

KINDS = {"TYPE_INT64": "i8", "TYPE_STRING": "O", "TYPE_FP32": "f4", "TYPE_FP64": "f8", "TYPE_BOOL": "b1"}
MODELS = {"deepmcat", "deepmcat_encoder", "deepmcat_assign"}
TRITON = os.environ.get("DEEPMCAT_TRITON", ".venv-triton")


@dataclass(frozen=True)
class Tensor:
    """pb_utils.Tensor, as far as the models use it."""

    name: str
    values: np.ndarray

    def as_numpy(self) -> np.ndarray:
        return self.values


@dataclass
class Response:
    """pb_utils.InferenceResponse."""

    output_tensors: list[Tensor] = field(default_factory=list)

    @property
    def by_name(self) -> dict[str, np.ndarray]:
        return {tensor.name: tensor.values for tensor in self.output_tensors}


@pytest.fixture(name="made")
def made_fixture(onnx_artifact: Path) -> Iterator[Categorizer]:
    categorizer = load(onnx_artifact, device="cpu")
    yield categorizer
    categorizer.engine.close()


@pytest.fixture(name="planes")
def planes_fixture(made: Categorizer) -> np.ndarray:
    """The prototypes, prototypes with noise, and noise: (n, 1, S, S)."""
    rng, prototypes = np.random.default_rng(1), made.artifact.self_test.images
    amounts = rng.integers(0, 60, size=(20, *prototypes.shape), dtype=np.uint8)
    noisy = np.maximum(prototypes, amounts).reshape(-1, *prototypes.shape[1:])
    return np.concatenate([prototypes, noisy, rng.integers(0, 256, noisy.shape, dtype=np.uint8)])


@pytest.fixture(name="model")
def model_fixture(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Any]:
    """A model of a repository, loaded as Triton does it, with a stub of Triton's module."""
    utils = ModuleType("triton_python_backend_utils")
    utils.Tensor, utils.InferenceResponse = Tensor, Response  # type: ignore[attr-defined]
    utils.get_input_tensor_by_name = lambda request, name: request[name]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)

    def model(folder: Path) -> Any:
        spec = importlib.util.spec_from_file_location(f"model_of_{folder.name}", folder / "1" / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        made = module.TritonPythonModel()
        made.initialize({"model_repository": str(folder), "model_version": "1"})
        return made

    return model


def config(folder: Path) -> Any:
    """The model's configuration, read as Triton reads it."""
    model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config.ModelConfig())


def check_same(outputs: Any, assignments: Sequence[Assignment]) -> None:
    """`outputs[name]` says what the assignments do; p-values to one calibration image, where scores tie."""
    check_outputs(outputs, assignments, p_value_atol=0.005)


def test_the_onnx_file_is_the_encoder(made, planes, tmp_path):
    """ONNX Runtime computes from the exported file what the artifact's engine computes; nothing is written over."""
    write_onnx(made.artifact, tmp_path / "encoder.onnx")

    exported = OnnxEngine(tmp_path / "encoder.onnx")
    np.testing.assert_array_equal(exported.embed(planes), made.engine.embed(planes))
    with pytest.raises(ConfigError, match="exists already"):
        write_onnx(made.artifact, tmp_path / "encoder.onnx")


def test_without_an_onnx_engine_there_is_no_export(artifact: Artifact, tmp_path):
    """An artifact without one is refused with a sentence, and nothing is left behind."""
    for export in (write_onnx, write_repository):
        with pytest.raises(ConfigError, match="no ONNX engine"):
            export(artifact, tmp_path / "out" / "x")
    assert not (tmp_path / "out").exists()


def test_a_repository_is_written_whole_or_not_at_all(made, tmp_path):
    """What is there already is left alone, and no temporary folder stays."""
    (tmp_path / "repository").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        write_repository(made.artifact, tmp_path / "repository")
    write_repository(made.artifact, tmp_path / "other")
    assert {path.name for path in tmp_path.iterdir()} == {"artifact", "repository", "other"}
    assert {path.name for path in (tmp_path / "other").iterdir()} == MODELS


def test_the_command_says_what_it_needs(onnx_artifact, tmp_path, capsys):
    """Without an option it says which there are; with both it writes both."""
    with pytest.raises(ConfigError, match="--onnx FILE or --triton DIR"):
        command(onnx_artifact)
    command(onnx_artifact, onnx=tmp_path / "e.onnx", triton=tmp_path / "repository")
    assert (tmp_path / "e.onnx").is_file()
    assert str(tmp_path / "repository") in capsys.readouterr().out


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_configurations_are_tritons(made, tmp_path, backend):
    """Each config.pbtxt parses as Triton's ModelConfig, named as its folder, and the ensemble joins what fits."""
    write_repository(made.artifact, tmp_path / "r", backend=backend)
    configs = {name: config(tmp_path / "r" / name) for name in MODELS}

    assert {c.name for c in configs.values()} == MODELS
    assert configs["deepmcat_encoder"].backend == backend
    tensors = {
        name: {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in (*c.input, *c.output)}
        for name, c in configs.items()
    }
    joined = {}
    for step in configs["deepmcat"].ensemble_scheduling.step:
        batched = configs[step.model_name].max_batch_size > 0
        for inner, outer in (*step.input_map.items(), *step.output_map.items()):
            data_type, dims = tensors[step.model_name][inner]
            assert joined.setdefault(outer, (data_type, [-1] * batched + dims)) == (data_type, [-1] * batched + dims)
    assert joined == tensors["deepmcat"]
    assert configs["deepmcat"].parameters["artifact_id"].string_value == made.artifact.artifact_id


def test_the_assigning_model_answers_as_the_assigner(made, planes, tmp_path, model):
    """It gives every request the clusters, categories, p-values and verdicts that ours gives, unknown ones too."""
    write_repository(made.artifact, tmp_path / "r")
    embeddings = made.engine.embed(planes)
    requests = [{"embedding": Tensor("embedding", part)} for part in (embeddings[:1], embeddings[1:])]
    responses = model(tmp_path / "r" / "deepmcat_assign").execute(requests)

    together = {name: np.concatenate([r.by_name[name] for r in responses]) for name in responses[0].by_name}
    assignments = made.assigner.assign(embeddings)
    check_same(together, assignments)
    assert 0 < sum(a.category == "unknown" for a in assignments) < len(assignments)
    outputs = config(tmp_path / "r" / "deepmcat_assign").output
    data_types = outputs[0].DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    declared = {tensor.name: KINDS[data_types[tensor.data_type].name] for tensor in outputs}
    assert {name: values.dtype.str[1:] for name, values in together.items()} == declared


def test_the_encoding_model_answers_each_request(made, planes, tmp_path, model):
    """It runs the requests of a dynamic batch as one, and gives each its own embeddings."""
    write_repository(made.artifact, tmp_path / "r", backend="python")
    requests = [{"images": Tensor("images", part)} for part in (planes[:3], planes[3:4], planes[4:])]
    responses = model(tmp_path / "r" / "deepmcat_encoder").execute(requests)

    parts = [response.by_name["embeddings"] for response in responses]
    assert [len(part) for part in parts] == [3, 1, len(planes) - 4]
    np.testing.assert_allclose(np.concatenate(parts), made.engine.embed(planes), atol=1e-6)


def test_the_assigning_model_needs_numpy_alone(made, tmp_path):
    """It imports numpy, Triton's module and what Python brings: Triton's image has no more."""
    write_repository(made.artifact, tmp_path / "r")
    tree = ast.parse((tmp_path / "r" / "deepmcat_assign" / "1" / "model.py").read_text())
    modules = {n.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names}
    modules |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules - set(sys.stdlib_module_names) == {"numpy", "triton_python_backend_utils"}


@contextlib.contextmanager
def tritonserver(site: Path, repository: Path, folder: Path) -> Iterator[str]:
    """The tritonserver that nvidia-pytriton brings, serving a repository: its address."""
    server = site / "pytriton" / "tritonserver"
    shutil.copytree(server / "backends" / "python", folder / "backends" / "python")
    stub = server / "python_backend_stubs" / "3.11" / "triton_python_backend_stub"
    shutil.copy(stub, folder / "backends" / "python")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PATH": f"{site.parents[2] / 'bin'}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"),
        "PYTHONPATH": str(site),
    }
    options = [f"--model-repository={repository}", f"--backend-directory={folder / 'backends'}", "--allow-http=false"]
    options += ["--allow-metrics=false", "--grpc-address=127.0.0.1", f"--grpc-port={port}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([server / "bin" / "tritonserver", *options], env=environment, stderr=log)
    try:
        while b"Started GRPCInferenceService" not in (folder / "log").read_bytes():
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
def test_a_real_triton_answers_as_we_do(made, planes, tmp_path):
    """Its ensemble gives for planes what the artifact gives, and so does its encoder to a server that has it there."""
    found = sorted(Path(TRITON).resolve().glob("lib/python3.11/site-packages/pytriton"))
    if not found:
        pytest.skip("no tritonserver: make test-triton, where /usr/bin/python3.11 is the distribution's own")
    grpcclient = pytest.importorskip("tritonclient.grpc")
    write_repository(made.artifact, tmp_path / "r", backend="python")
    plane = grpcclient.InferInput("plane", planes[:60, 0].shape, "UINT8").set_data_from_numpy(planes[:60, 0])
    with (
        tritonserver(found[0].parent, tmp_path / "r", tmp_path) as address,
        grpcclient.InferenceServerClient(address) as client,
    ):
        result = client.infer("deepmcat", [plane])
        engine = engine_opener(Settings(encoder=f"triton://{address}/deepmcat_encoder"))(made.artifact)
        remote = engine.embed(planes[:60])
        engine.close()
        names = [output["name"] for output in client.get_model_metadata("deepmcat", as_json=True)["outputs"]]

    embeddings = made.engine.embed(planes[:60])
    np.testing.assert_allclose(remote, embeddings, atol=1e-6)
    np.testing.assert_allclose(result.as_numpy("embedding"), embeddings, atol=1e-6)
    check_same({name: result.as_numpy(name) for name in names}, made.assigner.assign(embeddings))
