from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ArtifactState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ARTIFACT_STATE_UNSPECIFIED: _ClassVar[ArtifactState]
    ARTIFACT_STATE_AVAILABLE: _ClassVar[ArtifactState]
    ARTIFACT_STATE_LOADED: _ClassVar[ArtifactState]
    ARTIFACT_STATE_IN_FORCE: _ClassVar[ArtifactState]
ARTIFACT_STATE_UNSPECIFIED: ArtifactState
ARTIFACT_STATE_AVAILABLE: ArtifactState
ARTIFACT_STATE_LOADED: ArtifactState
ARTIFACT_STATE_IN_FORCE: ArtifactState

class ArtifactStatus(_message.Message):
    __slots__ = ("name", "version", "artifact_id", "state", "catalog_version", "created_at", "size_bytes", "images")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CATALOG_VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    artifact_id: str
    state: ArtifactState
    catalog_version: int
    created_at: str
    size_bytes: int
    images: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., artifact_id: _Optional[str] = ..., state: _Optional[_Union[ArtifactState, str]] = ..., catalog_version: _Optional[int] = ..., created_at: _Optional[str] = ..., size_bytes: _Optional[int] = ..., images: _Optional[int] = ...) -> None: ...

class ListArtifactsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListArtifactsResponse(_message.Message):
    __slots__ = ("artifacts",)
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    artifacts: _containers.RepeatedCompositeFieldContainer[ArtifactStatus]
    def __init__(self, artifacts: _Optional[_Iterable[_Union[ArtifactStatus, _Mapping]]] = ...) -> None: ...

class LoadArtifactRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class LoadArtifactResponse(_message.Message):
    __slots__ = ("artifact",)
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    artifact: ArtifactStatus
    def __init__(self, artifact: _Optional[_Union[ArtifactStatus, _Mapping]] = ...) -> None: ...

class ActivateArtifactRequest(_message.Message):
    __slots__ = ("name", "version", "artifact_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    artifact_id: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., artifact_id: _Optional[str] = ...) -> None: ...

class ActivateArtifactResponse(_message.Message):
    __slots__ = ("artifact", "previous_artifact_id")
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_ARTIFACT_ID_FIELD_NUMBER: _ClassVar[int]
    artifact: ArtifactStatus
    previous_artifact_id: str
    def __init__(self, artifact: _Optional[_Union[ArtifactStatus, _Mapping]] = ..., previous_artifact_id: _Optional[str] = ...) -> None: ...

class RollbackArtifactRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RollbackArtifactResponse(_message.Message):
    __slots__ = ("artifact", "previous_artifact_id")
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_ARTIFACT_ID_FIELD_NUMBER: _ClassVar[int]
    artifact: ArtifactStatus
    previous_artifact_id: str
    def __init__(self, artifact: _Optional[_Union[ArtifactStatus, _Mapping]] = ..., previous_artifact_id: _Optional[str] = ...) -> None: ...

class UnloadArtifactRequest(_message.Message):
    __slots__ = ("artifact_id",)
    ARTIFACT_ID_FIELD_NUMBER: _ClassVar[int]
    artifact_id: str
    def __init__(self, artifact_id: _Optional[str] = ...) -> None: ...

class UnloadArtifactResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
