from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SampleType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SAMPLE_TYPE_UNSPECIFIED: _ClassVar[SampleType]
    SAMPLE_TYPE_UINT8: _ClassVar[SampleType]
    SAMPLE_TYPE_UINT16: _ClassVar[SampleType]
    SAMPLE_TYPE_INT16: _ClassVar[SampleType]
    SAMPLE_TYPE_FLOAT32: _ClassVar[SampleType]

class PhotometricInterpretation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHOTOMETRIC_INTERPRETATION_UNSPECIFIED: _ClassVar[PhotometricInterpretation]
    PHOTOMETRIC_INTERPRETATION_MONOCHROME1: _ClassVar[PhotometricInterpretation]
    PHOTOMETRIC_INTERPRETATION_MONOCHROME2: _ClassVar[PhotometricInterpretation]

class ImageFlag(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_FLAG_UNSPECIFIED: _ClassVar[ImageFlag]
    IMAGE_FLAG_DERIVED: _ClassVar[ImageFlag]
    IMAGE_FLAG_LOCALIZER: _ClassVar[ImageFlag]
    IMAGE_FLAG_BURNED_IN_TEXT_POSSIBLE: _ClassVar[ImageFlag]
    IMAGE_FLAG_SECONDARY_CAPTURE: _ClassVar[ImageFlag]
    IMAGE_FLAG_OVERLAYS_IGNORED: _ClassVar[ImageFlag]
    IMAGE_FLAG_TRANSFER_SYNTAX_GUESSED: _ClassVar[ImageFlag]
    IMAGE_FLAG_PREAMBLE_EXECUTABLE: _ClassVar[ImageFlag]

class EmbeddingType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EMBEDDING_TYPE_UNSPECIFIED: _ClassVar[EmbeddingType]
    EMBEDDING_TYPE_FLOAT32: _ClassVar[EmbeddingType]

class CategoryStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CATEGORY_STATUS_UNSPECIFIED: _ClassVar[CategoryStatus]
    CATEGORY_STATUS_SUGGESTED: _ClassVar[CategoryStatus]
    CATEGORY_STATUS_NAMED: _ClassVar[CategoryStatus]
    CATEGORY_STATUS_RETIRED: _ClassVar[CategoryStatus]
SAMPLE_TYPE_UNSPECIFIED: SampleType
SAMPLE_TYPE_UINT8: SampleType
SAMPLE_TYPE_UINT16: SampleType
SAMPLE_TYPE_INT16: SampleType
SAMPLE_TYPE_FLOAT32: SampleType
PHOTOMETRIC_INTERPRETATION_UNSPECIFIED: PhotometricInterpretation
PHOTOMETRIC_INTERPRETATION_MONOCHROME1: PhotometricInterpretation
PHOTOMETRIC_INTERPRETATION_MONOCHROME2: PhotometricInterpretation
IMAGE_FLAG_UNSPECIFIED: ImageFlag
IMAGE_FLAG_DERIVED: ImageFlag
IMAGE_FLAG_LOCALIZER: ImageFlag
IMAGE_FLAG_BURNED_IN_TEXT_POSSIBLE: ImageFlag
IMAGE_FLAG_SECONDARY_CAPTURE: ImageFlag
IMAGE_FLAG_OVERLAYS_IGNORED: ImageFlag
IMAGE_FLAG_TRANSFER_SYNTAX_GUESSED: ImageFlag
IMAGE_FLAG_PREAMBLE_EXECUTABLE: ImageFlag
EMBEDDING_TYPE_UNSPECIFIED: EmbeddingType
EMBEDDING_TYPE_FLOAT32: EmbeddingType
CATEGORY_STATUS_UNSPECIFIED: CategoryStatus
CATEGORY_STATUS_SUGGESTED: CategoryStatus
CATEGORY_STATUS_NAMED: CategoryStatus
CATEGORY_STATUS_RETIRED: CategoryStatus

class Image(_message.Message):
    __slots__ = ("encoded", "raw", "chunked")
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    CHUNKED_FIELD_NUMBER: _ClassVar[int]
    encoded: bytes
    raw: RawPlane
    chunked: ChunkedContent
    def __init__(self, encoded: _Optional[bytes] = ..., raw: _Optional[_Union[RawPlane, _Mapping]] = ..., chunked: _Optional[_Union[ChunkedContent, _Mapping]] = ...) -> None: ...

class RawPlane(_message.Message):
    __slots__ = ("rows", "columns", "sample_type", "photometric_interpretation", "data")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_TYPE_FIELD_NUMBER: _ClassVar[int]
    PHOTOMETRIC_INTERPRETATION_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    rows: int
    columns: int
    sample_type: SampleType
    photometric_interpretation: PhotometricInterpretation
    data: bytes
    def __init__(self, rows: _Optional[int] = ..., columns: _Optional[int] = ..., sample_type: _Optional[_Union[SampleType, str]] = ..., photometric_interpretation: _Optional[_Union[PhotometricInterpretation, str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ChunkedContent(_message.Message):
    __slots__ = ("size_bytes",)
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    size_bytes: int
    def __init__(self, size_bytes: _Optional[int] = ...) -> None: ...

class CategorizeOptions(_message.Message):
    __slots__ = ("frames", "top_k", "want_embedding", "artifact_id", "timeout_ms")
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    WANT_EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_ID_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    frames: int
    top_k: int
    want_embedding: bool
    artifact_id: str
    timeout_ms: int
    def __init__(self, frames: _Optional[int] = ..., top_k: _Optional[int] = ..., want_embedding: _Optional[bool] = ..., artifact_id: _Optional[str] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class CategorizeRequest(_message.Message):
    __slots__ = ("item_id", "image", "options")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    image: Image
    options: CategorizeOptions
    def __init__(self, item_id: _Optional[str] = ..., image: _Optional[_Union[Image, _Mapping]] = ..., options: _Optional[_Union[CategorizeOptions, _Mapping]] = ...) -> None: ...

class CategorizeResponse(_message.Message):
    __slots__ = ("item_id", "categorization")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    CATEGORIZATION_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    categorization: Categorization
    def __init__(self, item_id: _Optional[str] = ..., categorization: _Optional[_Union[Categorization, _Mapping]] = ...) -> None: ...

class CategorizeStreamRequest(_message.Message):
    __slots__ = ("item", "chunk")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    item: CategorizeRequest
    chunk: bytes
    def __init__(self, item: _Optional[_Union[CategorizeRequest, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class CategorizeStreamResponse(_message.Message):
    __slots__ = ("item_id", "categorization", "error")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    CATEGORIZATION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    categorization: Categorization
    error: _status_pb2.Status
    def __init__(self, item_id: _Optional[str] = ..., categorization: _Optional[_Union[Categorization, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class Categorization(_message.Message):
    __slots__ = ("assignment", "frames", "total_frames", "flags", "embedding", "artifact_id", "catalog_version")
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FRAMES_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_ID_FIELD_NUMBER: _ClassVar[int]
    CATALOG_VERSION_FIELD_NUMBER: _ClassVar[int]
    assignment: Assignment
    frames: _containers.RepeatedCompositeFieldContainer[FrameAssignment]
    total_frames: int
    flags: _containers.RepeatedScalarFieldContainer[ImageFlag]
    embedding: Embedding
    artifact_id: str
    catalog_version: int
    def __init__(self, assignment: _Optional[_Union[Assignment, _Mapping]] = ..., frames: _Optional[_Iterable[_Union[FrameAssignment, _Mapping]]] = ..., total_frames: _Optional[int] = ..., flags: _Optional[_Iterable[_Union[ImageFlag, str]]] = ..., embedding: _Optional[_Union[Embedding, _Mapping]] = ..., artifact_id: _Optional[str] = ..., catalog_version: _Optional[int] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("category_id", "category", "cluster_id", "distance", "p_value", "outlier", "candidates")
    CATEGORY_ID_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    OUTLIER_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    category_id: str
    category: str
    cluster_id: int
    distance: float
    p_value: float
    outlier: bool
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    def __init__(self, category_id: _Optional[str] = ..., category: _Optional[str] = ..., cluster_id: _Optional[int] = ..., distance: _Optional[float] = ..., p_value: _Optional[float] = ..., outlier: _Optional[bool] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("category_id", "category", "cluster_id", "distance")
    CATEGORY_ID_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_FIELD_NUMBER: _ClassVar[int]
    category_id: str
    category: str
    cluster_id: int
    distance: float
    def __init__(self, category_id: _Optional[str] = ..., category: _Optional[str] = ..., cluster_id: _Optional[int] = ..., distance: _Optional[float] = ...) -> None: ...

class FrameAssignment(_message.Message):
    __slots__ = ("frame_number", "assignment")
    FRAME_NUMBER_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    frame_number: int
    assignment: Assignment
    def __init__(self, frame_number: _Optional[int] = ..., assignment: _Optional[_Union[Assignment, _Mapping]] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("type", "dim", "data")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    type: EmbeddingType
    dim: int
    data: bytes
    def __init__(self, type: _Optional[_Union[EmbeddingType, str]] = ..., dim: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class GetArtifactRequest(_message.Message):
    __slots__ = ("artifact_id",)
    ARTIFACT_ID_FIELD_NUMBER: _ClassVar[int]
    artifact_id: str
    def __init__(self, artifact_id: _Optional[str] = ...) -> None: ...

class GetArtifactResponse(_message.Message):
    __slots__ = ("artifact", "limits", "engine", "device", "server_version", "decoders", "precision")
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    DECODERS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    artifact: Artifact
    limits: Limits
    engine: str
    device: str
    server_version: str
    decoders: _containers.RepeatedScalarFieldContainer[str]
    precision: str
    def __init__(self, artifact: _Optional[_Union[Artifact, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., engine: _Optional[str] = ..., device: _Optional[str] = ..., server_version: _Optional[str] = ..., decoders: _Optional[_Iterable[str]] = ..., precision: _Optional[str] = ...) -> None: ...

class Artifact(_message.Message):
    __slots__ = ("artifact_id", "created_at", "encoder", "dim", "clusters", "categories", "catalog_version", "preprocessing", "calibration", "recipe", "decoders", "precision_gates")
    ARTIFACT_ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    ENCODER_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    CLUSTERS_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    CATALOG_VERSION_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    DECODERS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_GATES_FIELD_NUMBER: _ClassVar[int]
    artifact_id: str
    created_at: str
    encoder: str
    dim: int
    clusters: int
    categories: int
    catalog_version: int
    preprocessing: Preprocessing
    calibration: Calibration
    recipe: str
    decoders: _containers.RepeatedScalarFieldContainer[str]
    precision_gates: _containers.RepeatedCompositeFieldContainer[PrecisionGate]
    def __init__(self, artifact_id: _Optional[str] = ..., created_at: _Optional[str] = ..., encoder: _Optional[str] = ..., dim: _Optional[int] = ..., clusters: _Optional[int] = ..., categories: _Optional[int] = ..., catalog_version: _Optional[int] = ..., preprocessing: _Optional[_Union[Preprocessing, _Mapping]] = ..., calibration: _Optional[_Union[Calibration, _Mapping]] = ..., recipe: _Optional[str] = ..., decoders: _Optional[_Iterable[str]] = ..., precision_gates: _Optional[_Iterable[_Union[PrecisionGate, _Mapping]]] = ...) -> None: ...

class PrecisionGate(_message.Message):
    __slots__ = ("device", "precision", "images", "min_cosine", "category_agreement", "passed")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    MIN_COSINE_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    device: str
    precision: str
    images: int
    min_cosine: float
    category_agreement: float
    passed: bool
    def __init__(self, device: _Optional[str] = ..., precision: _Optional[str] = ..., images: _Optional[int] = ..., min_cosine: _Optional[float] = ..., category_agreement: _Optional[float] = ..., passed: _Optional[bool] = ...) -> None: ...

class Preprocessing(_message.Message):
    __slots__ = ("version", "size", "intensity", "frames")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    INTENSITY_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    version: int
    size: int
    intensity: str
    frames: int
    def __init__(self, version: _Optional[int] = ..., size: _Optional[int] = ..., intensity: _Optional[str] = ..., frames: _Optional[int] = ...) -> None: ...

class Calibration(_message.Message):
    __slots__ = ("images", "groups", "alpha", "has_verdicts", "note")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    HAS_VERDICTS_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    images: int
    groups: int
    alpha: float
    has_verdicts: bool
    note: str
    def __init__(self, images: _Optional[int] = ..., groups: _Optional[int] = ..., alpha: _Optional[float] = ..., has_verdicts: _Optional[bool] = ..., note: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_message_bytes", "max_image_bytes", "max_chunk_bytes", "max_frames", "max_side", "max_stream_in_flight", "max_queue", "max_item_id_bytes", "default_timeout_ms", "max_timeout_ms", "max_streams", "max_calls", "decode_timeout_ms", "decode_cpu_ms", "decode_memory_bytes", "decode_workers", "max_batch", "queue_budget_ms")
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_FRAMES_FIELD_NUMBER: _ClassVar[int]
    MAX_SIDE_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAM_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEM_ID_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAMS_FIELD_NUMBER: _ClassVar[int]
    MAX_CALLS_FIELD_NUMBER: _ClassVar[int]
    DECODE_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    DECODE_CPU_MS_FIELD_NUMBER: _ClassVar[int]
    DECODE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DECODE_WORKERS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_FIELD_NUMBER: _ClassVar[int]
    QUEUE_BUDGET_MS_FIELD_NUMBER: _ClassVar[int]
    max_message_bytes: int
    max_image_bytes: int
    max_chunk_bytes: int
    max_frames: int
    max_side: int
    max_stream_in_flight: int
    max_queue: int
    max_item_id_bytes: int
    default_timeout_ms: int
    max_timeout_ms: int
    max_streams: int
    max_calls: int
    decode_timeout_ms: int
    decode_cpu_ms: int
    decode_memory_bytes: int
    decode_workers: int
    max_batch: int
    queue_budget_ms: int
    def __init__(self, max_message_bytes: _Optional[int] = ..., max_image_bytes: _Optional[int] = ..., max_chunk_bytes: _Optional[int] = ..., max_frames: _Optional[int] = ..., max_side: _Optional[int] = ..., max_stream_in_flight: _Optional[int] = ..., max_queue: _Optional[int] = ..., max_item_id_bytes: _Optional[int] = ..., default_timeout_ms: _Optional[int] = ..., max_timeout_ms: _Optional[int] = ..., max_streams: _Optional[int] = ..., max_calls: _Optional[int] = ..., decode_timeout_ms: _Optional[int] = ..., decode_cpu_ms: _Optional[int] = ..., decode_memory_bytes: _Optional[int] = ..., decode_workers: _Optional[int] = ..., max_batch: _Optional[int] = ..., queue_budget_ms: _Optional[int] = ...) -> None: ...

class ListCategoriesRequest(_message.Message):
    __slots__ = ("artifact_id",)
    ARTIFACT_ID_FIELD_NUMBER: _ClassVar[int]
    artifact_id: str
    def __init__(self, artifact_id: _Optional[str] = ...) -> None: ...

class ListCategoriesResponse(_message.Message):
    __slots__ = ("categories", "artifact_id", "catalog_version")
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_ID_FIELD_NUMBER: _ClassVar[int]
    CATALOG_VERSION_FIELD_NUMBER: _ClassVar[int]
    categories: _containers.RepeatedCompositeFieldContainer[Category]
    artifact_id: str
    catalog_version: int
    def __init__(self, categories: _Optional[_Iterable[_Union[Category, _Mapping]]] = ..., artifact_id: _Optional[str] = ..., catalog_version: _Optional[int] = ...) -> None: ...

class Category(_message.Message):
    __slots__ = ("category_id", "name", "codes", "status", "cluster_ids", "fit_images", "lineage", "terms")
    CATEGORY_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_IDS_FIELD_NUMBER: _ClassVar[int]
    FIT_IMAGES_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    category_id: str
    name: str
    codes: _containers.RepeatedCompositeFieldContainer[Code]
    status: CategoryStatus
    cluster_ids: _containers.RepeatedScalarFieldContainer[int]
    fit_images: int
    lineage: _containers.RepeatedScalarFieldContainer[str]
    terms: _containers.RepeatedCompositeFieldContainer[Term]
    def __init__(self, category_id: _Optional[str] = ..., name: _Optional[str] = ..., codes: _Optional[_Iterable[_Union[Code, _Mapping]]] = ..., status: _Optional[_Union[CategoryStatus, str]] = ..., cluster_ids: _Optional[_Iterable[int]] = ..., fit_images: _Optional[int] = ..., lineage: _Optional[_Iterable[str]] = ..., terms: _Optional[_Iterable[_Union[Term, _Mapping]]] = ...) -> None: ...

class Code(_message.Message):
    __slots__ = ("scheme", "value", "meaning")
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    MEANING_FIELD_NUMBER: _ClassVar[int]
    scheme: str
    value: str
    meaning: str
    def __init__(self, scheme: _Optional[str] = ..., value: _Optional[str] = ..., meaning: _Optional[str] = ...) -> None: ...

class Term(_message.Message):
    __slots__ = ("attribute", "value", "share")
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    attribute: str
    value: str
    share: float
    def __init__(self, attribute: _Optional[str] = ..., value: _Optional[str] = ..., share: _Optional[float] = ...) -> None: ...
