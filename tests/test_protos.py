"""The generated wire contract. Needs a client's packages only: `make test-protobuf7` runs it under protobuf 7 too."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat.v1 import categorization_pb2_grpc as rpc

ROOT = Path(__file__).parents[1]
MESSAGES = sorted(pb.DESCRIPTOR.message_types_by_name)

needs_protoc = pytest.mark.skipif(
    importlib.util.find_spec("grpc_tools") is None, reason="grpcio-tools is not installed: it generates the code"
)


def filled(descriptor: Descriptor) -> Message:
    """A message with a value in every field; of a oneof, the last one named wins."""
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        values = [value(field)] * (2 if field.is_repeated else 1)
        if field.is_repeated:
            getattr(message, field.name).extend(values)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(values[0])
        else:
            setattr(message, field.name, values[0])
    return message


def value(field: FieldDescriptor) -> object:
    """A value for a field that is not its default."""
    if field.message_type is not None:
        return filled(field.message_type)
    if field.enum_type is not None:
        return field.enum_type.values[-1].number
    kinds = {
        FieldDescriptor.CPPTYPE_BOOL: True,
        FieldDescriptor.CPPTYPE_FLOAT: 0.5,
        FieldDescriptor.CPPTYPE_DOUBLE: 0.5,
    }
    texts = {FieldDescriptor.TYPE_STRING: "name", FieldDescriptor.TYPE_BYTES: b"\x00\xff"}
    return texts.get(field.type, kinds.get(field.cpp_type, 7))


@pytest.mark.parametrize("name", MESSAGES)
def test_every_message_survives_the_wire(name: str) -> None:
    """What is written under this protobuf version is read back equal, every field of it."""
    message = filled(pb.DESCRIPTOR.message_types_by_name[name])

    assert type(message).FromString(message.SerializeToString()) == message


def test_the_stub_has_every_method_of_the_service() -> None:
    """The generated client calls what the contract declares."""
    service = pb.DESCRIPTOR.services_by_name["CategorizationService"]

    assert all(hasattr(rpc.CategorizationServiceServicer, method.name) for method in service.methods)


def test_a_client_imports_neither_torch_nor_numpy() -> None:
    """A client install stays small: importing the client and its command line needs the base packages only."""
    heavy = "{'torch', 'numpy', 'faiss', 'pydicom', 'deepmcat_core'}"
    code = f"import sys, deepmcat_client, deepmcat_client.cli; print(sorted({heavy} & sys.modules.keys()))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@needs_protoc
def test_generated_code_is_fresh() -> None:
    """What is committed is what `make protos` writes."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "protos/generate.py"), "--check"], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


@needs_protoc
def test_other_languages_need_nothing_but_the_protos_folder(tmp_path: Path) -> None:
    """Whoever generates a client finds every import with `-I protos` alone."""
    contract = "protos/deepmcat/v1/categorization.proto"
    out = tmp_path / "contract.binpb"
    command = ["-I", "protos", "--include_imports", f"--descriptor_set_out={out}", contract]

    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *command], cwd=ROOT, check=True)

    files = {file.name for file in FileDescriptorSet.FromString(out.read_bytes()).file}
    assert files == {"google/protobuf/any.proto", "google/rpc/status.proto", "deepmcat/v1/categorization.proto"}


def test_image_flags_and_statuses_have_the_names_of_the_core() -> None:
    """The server can name every flag and status on the wire, and none is left out."""
    frame = pytest.importorskip("deepmcat_core.frame")
    catalog = pytest.importorskip("deepmcat_core.catalog")

    assert pb.ImageFlag.keys()[1:] == [f"IMAGE_FLAG_{flag.value}" for flag in frame.ImageFlag]
    assert pb.CategoryStatus.keys()[1:] == [f"CATEGORY_STATUS_{s.name}" for s in catalog.CategoryStatus]
