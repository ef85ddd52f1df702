"""The Open Inference Protocol over a real channel, called with Triton's own unmodified clients."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import queue
import sys
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from tests.outputs import check_outputs

from deepmcat_core.assigner import Assignment

triton = pytest.importorskip("tritonclient.grpc")
aio = pytest.importorskip("tritonclient.grpc.aio")
oip = pytest.importorskip("tritonclient.grpc.service_pb2")
oip_grpc = pytest.importorskip("tritonclient.grpc.service_pb2_grpc")
utils = pytest.importorskip("tritonclient.utils")

OUTPUTS = ["embedding", "cluster", "category_id", "category", "distance", "p_value", "outlier"]


def image_input(images: Sequence[bytes]) -> Any:
    return triton.InferInput("image", [len(images)], "BYTES").set_data_from_numpy(np.array(images, np.object_))


def plane_input(planes: np.ndarray) -> Any:
    return triton.InferInput("plane", planes.shape, "UINT8").set_data_from_numpy(planes)


def wanted(*names: str) -> list[Any]:
    return [triton.InferRequestedOutput(name) for name in names]


def check(result: Any, assignments: Sequence[Assignment]) -> None:
    """The outputs of a result say what these assignments do."""
    check_outputs({name: result.as_numpy(name) for name in OUTPUTS[1:]}, assignments)


async def refused(call: Any) -> Any:
    """What Triton's client raises."""
    with pytest.raises(utils.InferenceServerException) as caught:
        await call
    return caught.value


@pytest.fixture(name="planes")
def planes_fixture(draft: Any) -> np.ndarray:
    """Prototypes and noise, (n, S, S): images 0 to 3 belong to clusters 0 to 3, the others are outliers."""
    prototypes = draft.self_test.images[:, 0]
    noise = np.random.default_rng(9).integers(0, 256, (3, *prototypes.shape[1:]), dtype=np.uint8)
    return np.concatenate([prototypes, noise])


@pytest.fixture(name="client")
def client_fixture() -> Callable[[Any], Any]:
    """Triton's asynchronous client of a server."""
    return lambda served: aio.InferenceServerClient(str(served.running.listen))


async def test_encoded_images_get_what_our_own_service_gives(serving, pngs, request_of, client):
    """A batch of files has, row by row, the category, cluster, p-value and embedding of Categorize."""
    async with serving() as served, client(served) as triton_client:
        result = await triton_client.infer("deepmcat", [image_input(pngs)], request_id="mine")
        ours = [await served.stub.Categorize(request_of(png, want_embedding=True)) for png in pngs]

    answers = [response.categorization for response in ours]
    assert result.as_numpy("cluster").tolist() == [a.assignment.cluster_id for a in answers]
    assert result.as_numpy("category").tolist() == [a.assignment.category.encode() for a in answers]
    assert result.as_numpy("category_id").tolist() == [a.assignment.category_id.encode() for a in answers]
    np.testing.assert_allclose(result.as_numpy("p_value"), [a.assignment.p_value for a in answers])
    embeddings = [np.frombuffer(a.embedding.data, "<f4") for a in answers]
    np.testing.assert_allclose(result.as_numpy("embedding"), embeddings, atol=1e-6)
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("mine", "deepmcat", answers[0].artifact_id)
    assert response.parameters["catalog_version"].int64_param == 1
    assert served.scraped["deepmcat_images_total result=ok"] == 8


async def test_planes_are_split_and_answered_in_order(serving, planes, client):
    """More planes than a batch takes come back in order, each as the library assigns it, outliers as unknown."""
    async with serving(max_batch=2) as served, client(served) as triton_client:
        result = await triton_client.infer("deepmcat", [plane_input(planes)])
        batches = served.engine.batches[:]
        expected = served.categorizer.assigner.assign(served.categorizer.engine.embed(planes[:, None]))

    check(result, expected)
    assert result.as_numpy("category").tolist()[-3:] == [b"unknown"] * 3
    assert batches == [2, 2, 2, 1]
    assert served.scraped["deepmcat_images_total result=ok"] == 7
    assert served.scraped["deepmcat_outliers_total"] == 3


async def test_the_synchronous_client_works_too(serving, planes, pngs):
    """tritonclient.grpc's blocking client gets the same answer for a file and for its plane."""

    def call(address: str) -> list[Any]:
        with triton.InferenceServerClient(address) as client:
            assert client.is_server_live()
            return [client.infer("deepmcat", [each]) for each in (image_input(pngs[:1]), plane_input(planes[:1]))]

    async with serving() as served:
        file, plane = await asyncio.to_thread(call, str(served.running.listen))
    assert file.as_numpy("cluster").tolist() == plane.as_numpy("cluster").tolist() == [0]


async def test_only_requested_outputs_come(serving, pngs, client):
    """Outputs asked for by name come in that order, and no others; without names all come."""
    async with serving() as served, client(served) as triton_client:
        some = await triton_client.infer("deepmcat", [image_input(pngs)], outputs=wanted("category", "cluster"))
        all_ = await triton_client.infer("deepmcat", [image_input(pngs)])

    assert [output.name for output in some.get_response().outputs] == ["category", "cluster"]
    assert some.as_numpy("embedding") is None
    assert [output.name for output in all_.get_response().outputs] == OUTPUTS


async def test_without_calibration_p_values_are_nan(serving, changed_calibration, pngs, client):
    """Where the artifact has no verdicts, p_value is NaN and outlier is false."""
    async with serving(artifact=changed_calibration) as served, client(served) as triton_client:
        result = await triton_client.infer("deepmcat", [image_input(pngs)])
    assert np.isnan(result.as_numpy("p_value")).all()
    assert not result.as_numpy("outlier").any()


@pytest.fixture(name="changed_calibration")
def changed_calibration_fixture(artifact: Any) -> Any:
    few = dataclasses.replace(
        artifact.calibration,
        images=50,
        scores=artifact.calibration.scores[:50],
        offsets=np.array([0, 50]),
        groups=np.zeros(4, np.int64),
    )
    return dataclasses.replace(artifact, calibration=few)


async def test_typed_contents_are_as_good_as_raw_ones(serving, planes, pngs):
    """bytes_contents and uint_contents, which other clients of the protocol send, are read like raw contents."""
    files = oip.ModelInferRequest(model_name="deepmcat")
    files.inputs.add(name="image", datatype="BYTES", shape=[4]).contents.bytes_contents.extend(pngs)
    pixels = oip.ModelInferRequest(model_name="deepmcat")
    tensor = pixels.inputs.add(name="plane", datatype="UINT8", shape=[4, *planes.shape[1:]])
    tensor.contents.uint_contents.extend(planes[:4].ravel().tolist())
    async with serving() as served:
        stub = oip_grpc.GRPCInferenceServiceStub(served.channel)
        results = [triton.InferResult(await stub.ModelInfer(request)) for request in (files, pixels)]
    assert [result.as_numpy("cluster").tolist() for result in results] == [[0, 1, 2, 3]] * 2


def request(**changes: Any) -> Any:
    """A request for one image that is in order, but for the changes."""
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1]} | changes.pop("tensor", {})
    raw = changes.pop("raw", [b"\1\0\0\0x"])
    inputs = changes.pop("inputs", [tensor])
    return oip.ModelInferRequest(**({"model_name": "deepmcat", "inputs": inputs, "raw_input_contents": raw} | changes))


SHARED = {"shared_memory_region": oip.InferParameter(string_param="x")}
PLANE = {"name": "plane", "datatype": "UINT8", "shape": [1, 32, 32]}


WRONG = [
    (request(inputs=[]), "the request has 0 inputs; one is needed, image or plane"),
    (request(tensor={"name": "x-ray"}), "the request has 1 inputs; one is needed, image or plane"),
    (request(tensor={"datatype": "UINT8"}), "the input image has another data type than BYTES"),
    (request(tensor={"shape": [1, 1]}), r"the input image has shape [1, 1]; [n] is needed"),
    (request(tensor={"shape": []}), r"the input image has shape []; [n] is needed"),
    (request(tensor={"shape": [0]}, raw=[b""]), "the request has 0 images; 1 to 8 are allowed"),
    (request(tensor={"shape": [-1]}), "the request has -1 images; 1 to 8 are allowed"),
    (request(tensor={"shape": [9]}), "the request has 9 images; 1 to 8 are allowed"),
    (request(tensor=PLANE | {"shape": [1, 32, 31]}), "shape [1, 32, 31]; [n, 32, 32] is needed"),
    (request(tensor=PLANE, raw=[bytes(1023)]), "has 1023 values; its shape [1, 32, 32] has 1024"),
    (request(tensor={"parameters": SHARED}), "shares no memory"),
    (request(raw=[]), "came 0 times; once is needed"),
    (request(raw=[b"", b""]), "came 2 times; once is needed"),
    (request(tensor={"contents": oip.InferTensorContents(bytes_contents=[b"x"])}), "came 2 times"),
    (
        request(tensor=PLANE | {"contents": oip.InferTensorContents(uint_contents=[256] * 1024)}, raw=[]),
        "a value of the input plane is over 255",
    ),
    (
        request(tensor={"contents": oip.InferTensorContents(bytes_contents=[b"x"] * 2)}, raw=[]),
        "has 2 elements; its shape has 1",
    ),
    (request(raw=[b"\1\0\0"]), "ends within image[0]"),
    (request(raw=[b"\2\0\0\0x"]), "ends within image[0]"),
    (request(raw=[b"\xff\xff\xff\xffx"]), "ends within image[0]"),
    (request(raw=[b"\1\0\0\0xy"]), "has 1 bytes after the last element"),
    (request(raw=[b"\0\0\0\0"]), "image[0] has 0 bytes"),
    (request(outputs=[{"name": "Meyer"}]), "there are embedding, cluster"),
    (
        request(outputs=[{"name": "cluster", "parameters": {"classification": oip.InferParameter(int64_param=3)}}]),
        "no classes",
    ),
    (request(outputs=[{"name": "cluster", "parameters": SHARED}]), "no shared memory"),
]


async def test_a_wrong_tensor_is_refused_with_a_sentence(serving):
    """Names, types, shapes and contents that do not fit are INVALID_ARGUMENT, and nothing is let in."""
    async with serving(max_queue=8) as served:
        stub = oip_grpc.GRPCInferenceServiceStub(served.channel)
        for wrong, sentence in WRONG:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ModelInfer(wrong)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, sentence
            assert sentence in (caught.value.details() or "")
            assert served.running.admission.images == 0
    assert served.engine.batches == []


async def test_an_image_over_the_limit_is_named(serving, client):
    """A file over max_image_bytes is refused by its index before anything is decoded."""
    async with serving(max_image_bytes=1000) as served, client(served) as triton_client:
        error = await refused(triton_client.infer("deepmcat", [image_input([b"x", bytes(1001)])]))
    assert error.message() == "image[1] has 1001 bytes; this server takes at most 1000"


async def test_one_bad_image_fails_the_call_and_is_named(serving, pngs, client):
    """A request has one status: the first image that cannot be read ends it, by index and reason; the next is fine."""
    async with serving() as served, client(served) as triton_client:
        error = await refused(triton_client.infer("deepmcat", [image_input([*pngs[:2], b"no image", pngs[3]])]))
        after = await triton_client.infer("deepmcat", [image_input(pngs)])
        assert served.running.admission.images == 0
    assert error.status() == "StatusCode.INVALID_ARGUMENT"
    assert error.message().startswith("image[2] is UNSUPPORTED_IMAGE: ")
    assert after.as_numpy("cluster").tolist() == [0, 1, 2, 3]


async def test_a_full_server_refuses_at_once(serving, pngs, client, until):
    """The first image of a call gets in or the call ends with RESOURCE_EXHAUSTED and a pushback, as Categorize does."""
    async with serving(max_queue=1) as served, client(served) as triton_client:
        served.engine.free.clear()
        first = asyncio.create_task(triton_client.infer("deepmcat", [image_input(pngs[:1])]))
        await until(lambda: served.running.admission.images == 1)
        stub = oip_grpc.GRPCInferenceServiceStub(served.channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(request())
        assert "grpc-retry-pushback-ms" in dict(caught.value.trailing_metadata() or ())
        served.engine.free.set()
        assert (await first).as_numpy("cluster").tolist() == [0]
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_call_may_have_more_images_than_fit_in_at_once(serving, planes, client):
    """Behind the first, images wait for room: a call that is larger than what may be inside is answered in parts."""
    size = planes[0].nbytes
    async with serving(max_batch=1, max_pending_bytes=2 * size) as served, client(served) as triton_client:
        result = await triton_client.infer("deepmcat", [plane_input(planes)])
    assert result.as_numpy("cluster").tolist()[:4] == [0, 1, 2, 3]
    assert served.engine.batches == [1] * 7


async def test_tritons_timeout_is_kept(serving, pngs, client, until):
    """The parameter `timeout`, in microseconds, ends a call that takes longer, and its image is inside no more."""
    async with serving() as served, client(served) as triton_client:
        served.engine.free.clear()
        error = await refused(triton_client.infer("deepmcat", [image_input(pngs[:1])], timeout=50_000))
        await until(lambda: served.running.admission.images == 0)
        served.engine.free.set()
    assert error.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert "in its time" in error.message()


async def test_a_caller_that_leaves_frees_its_images(serving, pngs, client, until):
    """Cancelling a call takes all its images out."""
    async with serving() as served, client(served) as triton_client:
        served.engine.free.clear()
        call = asyncio.create_task(triton_client.infer("deepmcat", [image_input(pngs)]))
        await until(lambda: served.running.admission.images == 4)
        call.cancel()
        await until(lambda: served.running.admission.images == 0)
        served.engine.free.set()


async def test_streams_answer_in_order_and_go_on_after_an_error(serving, pngs, planes):
    """Triton's streaming client gets one response a request, in order; a bad one has its reason and ends nothing."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    inputs = [image_input([pngs[2]]), image_input([b"no image"]), plane_input(planes[:4]), image_input(pngs[:2])]

    def call(address: str) -> list[tuple[Any, Any]]:
        with triton.InferenceServerClient(address) as client:
            client.start_stream(lambda result, error: answers.put((result, error)))
            for i, each in enumerate(inputs):
                client.async_stream_infer("deepmcat", [each], request_id=str(i), enable_empty_final_response=True)
            return [answers.get(timeout=20) for _ in inputs]

    async with serving() as served:
        found = await asyncio.to_thread(call, str(served.running.listen))

    assert [result and result.as_numpy("cluster").tolist() for result, _ in found] == [[2], None, [0, 1, 2, 3], [0, 1]]
    assert found[1][1].message().startswith("UNSUPPORTED_IMAGE: image[0] is UNSUPPORTED_IMAGE: ")
    last = found[3][0].get_response()
    assert (last.id, last.parameters["triton_final_response"].bool_param) == ("3", True)


async def test_a_stream_waits_where_a_call_is_refused(serving, pngs, until):
    """While the server is full a stream is not read on, and its requests are answered when there is room."""
    async with serving(max_queue=1) as served:
        served.engine.free.clear()
        stub = oip_grpc.GRPCInferenceServiceStub(served.channel)

        async def requests() -> Any:
            for png in pngs:
                yield request(raw=[len(png).to_bytes(4, "little") + png])

        call = stub.ModelStreamInfer(requests())
        await until(lambda: served.running.admission.images == 1)
        served.engine.free.set()
        answers = [triton.InferResult(answer.infer_response) async for answer in call]
    assert [answer.as_numpy("cluster").tolist() for answer in answers] == [[0], [1], [2], [3]]


async def test_a_server_that_closes_answers_what_it_has_read(serving, pngs, until):
    """A server that drains is not ready, and answers; then a stream ends with UNAVAILABLE, and nothing read is lost."""
    async with asyncio.timeout(20):
        server = serving(drain_s=0.5)
        served = await server.__aenter__()
        channel = grpc.aio.insecure_channel(str(served.running.listen))
        stub = oip_grpc.GRPCInferenceServiceStub(channel)
        served.engine.free.clear()
        call = stub.ModelStreamInfer()
        for png in pngs[:2]:
            await call.write(request(raw=[len(png).to_bytes(4, "little") + png]))
        await until(lambda: served.running.admission.images == 2)
        before = await stub.ServerReady(oip.ServerReadyRequest())
        leaving = asyncio.create_task(server.__aexit__(None, None, None))
        await asyncio.sleep(0.1)
        during = await stub.ServerReady(oip.ServerReadyRequest())
        model = await stub.ModelReady(oip.ModelReadyRequest(name="deepmcat"))
        served.engine.free.set()
        answers = [await call.read(), await call.read()]
        code = await call.code()
        await leaving
        await channel.close()

    assert (before.ready, during.ready, model.ready) == (True, False, False)
    assert [triton.InferResult(a.infer_response).as_numpy("cluster").tolist() for a in answers] == [[0], [1]]
    assert code is grpc.StatusCode.UNAVAILABLE


async def test_what_the_server_says_of_itself(serving, pngs, client):
    """Metadata, configuration, index, readiness and statistics name the artifact and the tensors that calls take."""
    async with serving() as served, client(served) as t:
        artifact_id = served.categorizer.artifact.artifact_id
        await t.infer("deepmcat", [image_input(pngs)])
        await refused(t.infer("deepmcat", [image_input([b"no image"])]))
        metadata = await t.get_model_metadata("deepmcat", as_json=True)
        config = await t.get_model_config("deepmcat", artifact_id, as_json=True)
        index = await t.get_model_repository_index()
        statistics = (await t.get_inference_statistics("deepmcat")).model_stats
        ready = [await t.is_model_ready(*pin) for pin in (("deepmcat",), ("deepmcat", artifact_id), ("other",))]
        server = await t.get_server_metadata(as_json=True)

    shapes = {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in metadata["inputs"]}
    assert shapes == {"image": ("BYTES", ["-1"]), "plane": ("UINT8", ["-1", "32", "32"])}
    assert [tensor["name"] for tensor in metadata["outputs"]] == OUTPUTS
    assert metadata["versions"] == [artifact_id]
    assert [tensor["name"] for tensor in config["config"]["output"]] == OUTPUTS
    assert config["config"]["parameters"]["artifact_id"]["string_value"] == artifact_id
    assert [(model.name, model.version, model.state) for model in index.models] == [("deepmcat", artifact_id, "READY")]
    (of,) = statistics
    stats = of.inference_stats
    assert (of.inference_count, stats.success.count, stats.fail.count) == (4, 1, 1)
    assert stats.success.ns > 0
    assert of.last_inference > 1.7e12
    assert ready == [True, True, False]
    assert server["name"] == "deepmcat"


async def test_versions_are_artifacts(serving, pngs, client):
    """A call may pin an artifact by id; others, and other models, are NOT_FOUND, and nothing is repeated."""
    async with serving() as served, client(served) as t:
        artifact_id = served.categorizer.artifact.artifact_id
        pinned = await t.infer("deepmcat", [image_input(pngs)], model_version=artifact_id)
        errors = [
            await refused(t.infer(name, [image_input(pngs)], model_version=version))
            for name, version in (("deepmcat", "Meyer"), ("Meyer", ""))
        ]
        errors.append(await refused(t.get_model_metadata("Meyer")))
    assert pinned.get_response().model_version == artifact_id
    assert {error.status() for error in errors} == {"StatusCode.NOT_FOUND"}
    assert not any("Meyer" in error.message() for error in errors)


async def test_other_methods_are_not_implemented(serving, client):
    """Loading, unloading, shared memory and trace settings are not offered."""
    async with serving() as served, client(served) as t:
        errors = [
            await refused(call)
            for call in (t.load_model("deepmcat"), t.get_system_shared_memory_status(), t.get_trace_settings())
        ]
    assert {error.status() for error in errors} == {"StatusCode.UNIMPLEMENTED"}


async def test_request_ids_are_not_logged(serving, pngs, client, caplog):
    """A request's id is echoed and in no log line, whether the call succeeds or fails."""
    with caplog.at_level(logging.DEBUG):
        async with serving() as served, client(served) as t:
            await t.infer("deepmcat", [image_input(pngs[:1])], request_id="Meyer^Anna")
            await refused(t.infer("deepmcat", [image_input([b"Meyer^Anna"])], request_id="Meyer^Anna"))
    assert any(record.getMessage() == "call" or "call" in record.msg for record in caplog.records)
    assert "Meyer" not in caplog.text


async def test_a_full_server_still_says_that_it_lives(serving, pngs, client, until):
    """Liveness and readiness have places of their own, so that a probe does not restart a server that is busy."""
    async with serving(max_calls=1) as served, client(served) as t:
        served.engine.free.clear()
        call = asyncio.create_task(t.infer("deepmcat", [image_input(pngs[:1])]))
        await until(lambda: served.running.admission.images == 1)
        assert await t.is_server_live()
        assert await t.is_server_ready()
        assert (await refused(t.get_model_metadata("deepmcat"))).status() == "StatusCode.RESOURCE_EXHAUSTED"
        served.engine.free.set()
        await call


async def test_quotas_hold(serving, pngs, client):
    """Images of a call count against the caller's quota: one over it is refused, not let through."""
    async with serving(quota_images_per_s=0.01, quota_burst_s=200) as served, client(served) as t:
        await t.infer("deepmcat", [image_input(pngs[:2])])
        error = await refused(t.infer("deepmcat", [image_input(pngs[:1])]))
    assert error.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert "quota" in error.message()


async def test_without_the_triton_client_there_is_no_such_service(serving, monkeypatch, caplog):
    """Without the extra the service is not registered, and the log says so once, for those who look."""
    monkeypatch.setitem(sys.modules, "tritonclient", None)
    with caplog.at_level(logging.DEBUG):
        async with serving() as served:
            live = served.channel.unary_unary(
                "/inference.GRPCInferenceService/ServerLive", lambda _: b"", oip.ServerLiveResponse.FromString
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await live(None)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert [record.levelname for record in caplog.records if "Open Inference" in record.getMessage()] == ["DEBUG"]
