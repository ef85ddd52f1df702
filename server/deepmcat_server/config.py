"""The server's settings. Flags win over DEEPMCAT_* variables, those over the config file, that over the defaults."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from deepmcat_core import config
from deepmcat_core.cpus import available_cpus
from deepmcat_core.decode_limits import WorkerLimits
from deepmcat_core.errors import ConfigError, MissingExtra
from deepmcat_core.frame import Limits
from deepmcat_server.addresses import AddressText, EncoderText, Endpoint, Location, parse_address
from deepmcat_server.callers import KINDS
from deepmcat_server.quotas import Quota
from deepmcat_server.scopes import Scope

MIB = 2**20


def _checked_pattern(text: str) -> str:
    if text != "**" and not text.startswith(KINDS):
        raise PydanticCustomError("pattern", f"a caller's key begins with {', '.join(KINDS)}, or is '**' for every one")
    return text


Pattern = Annotated[str, AfterValidator(_checked_pattern)]
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
Seconds = Annotated[float, Field(ge=0, le=3600)]
ArtifactName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]  # no id: those have 64 digits


class Settings(BaseSettings):
    """How one server runs. docs/operations.md explains each."""

    model_config = SettingsConfigDict(env_prefix="DEEPMCAT_", extra="forbid", frozen=True)

    listen: AddressText = "127.0.0.1:50051"
    admin: AddressText = "127.0.0.1:9464"
    insecure: bool = False  # plaintext beyond this machine, asked for explicitly
    reflection: bool = True

    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None  # then every connection needs a certificate of it
    credentials_poll_s: float = Field(default=10, gt=0, le=3600)  # these files, and one of jwt_jwks
    certificate_scopes: dict[Pattern, tuple[Scope, ...]] = {}
    anonymous_scopes: tuple[Scope, ...] = ("categorize", "read")  # where nothing says who calls

    jwt_issuer: str | None = Field(default=None, min_length=1)
    jwt_audience: str | None = Field(default=None, min_length=1)
    jwt_jwks: Location | None = Field(default=None, min_length=1)
    jwt_refresh_s: float = Field(default=300, gt=0, le=86400)  # a URL of jwt_jwks
    jwt_algorithms: tuple[Algorithm, ...] = Field(default=("RS256", "PS256", "ES256", "EdDSA"), min_length=1)
    jwt_leeway_s: float = Field(default=30, ge=0, le=600)  # by which clocks may differ
    jwt_scope_claims: tuple[str, ...] = ("scope", "scp", "roles")
    jwt_scopes: dict[str, tuple[Scope, ...]] = {}

    quota_images_per_s: float = Field(default=0, ge=0, allow_inf_nan=False)  # of a caller; 0: as many as it likes
    quota_bytes_per_s: float = Field(default=0, ge=0, allow_inf_nan=False)
    quota_burst_s: float = Field(default=10, ge=0, le=86400)
    quotas: dict[Pattern, Quota] = {}  # of some callers, instead

    audit_file: Path | None = None
    caller_id_key_file: Path | None = None

    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    encoder: EncoderText | None = None  # of a Triton, in place of the artifact's own
    encoder_timeout_s: float = Field(default=10, gt=0, le=3600)  # of a batch there
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    access_log: bool = True  # a line for each call

    trace_endpoint: Endpoint | None = None  # of a collector, OTLP over HTTP
    trace_sample: float = Field(default=0.01, ge=0, le=1)  # of calls whose callers do not trace
    trace_images: int = Field(default=16, ge=0, le=1024)  # of a call, that have spans of their own

    fronts: int = Field(default=1, ge=1, le=64)  # processes that share the port, and what is bounded
    decode_workers: int = Field(default=0, ge=0, le=256)  # 0: one a CPU
    engine_threads: int = Field(default=0, ge=0, le=256)  # of an encoder on the CPU; 0: one a CPU
    max_batch: int = Field(default=32, ge=1, le=1024)  # frames

    max_streams: int = Field(default=64, ge=1)  # open at once; each may hold a message
    max_calls: int = Field(default=64, ge=1)  # other calls, open at once; each may hold a message
    max_connections: int = Field(default=1024, ge=1)
    max_connection_age_s: float = Field(default=0, ge=0, le=86400)  # 0: as long as it likes
    max_connection_age_grace_s: float = Field(default=300, gt=0, le=86400)  # then, for its open calls
    max_metadata_bytes: int = Field(default=16384, ge=1024, le=2**20)  # of a call, a token included
    max_message_bytes: int = Field(default=16 * MIB, ge=2 * MIB, le=512 * MIB)  # a chunk must fit
    max_image_bytes: int = Field(default=512 * MIB, ge=1)
    max_pending_bytes: int = Field(default=1024 * MIB, ge=1)  # of all images inside
    max_queue: int = Field(default=1024, ge=1)
    max_pending_frames: int = Field(default=8192, ge=1)  # of all images inside, counted as the most that they can have
    queue_budget_s: float = Field(default=2.0, gt=0, le=3600)  # the longest that an image may have to wait inside
    max_stream_in_flight: int = Field(default=64, ge=1)  # one batch that runs, and the next
    max_frames: int = Field(default=64, ge=1, le=4096)
    max_side: int = Field(default=32768, ge=1)

    default_timeout_s: float = Field(default=30, gt=0, le=3600)
    max_timeout_s: float = Field(default=120, gt=0, le=3600)
    chunk_timeout_s: float = Field(default=30, gt=0, le=3600)
    decode_timeout_s: float = Field(default=60, gt=0, le=3600)  # then the worker is replaced
    decode_cpu_s: float = Field(default=30, gt=0, le=3600)  # the same, in CPU time
    decode_memory_bytes: int = Field(default=2048 * MIB, ge=64 * MIB)  # of one worker, beside its code and libraries

    drain_s: Seconds = 5.0  # answering as before while load balancers look elsewhere
    grace_s: Seconds = 30.0  # then, for what is still open
    catalog_poll_s: float = Field(default=2.0, gt=0, le=3600)

    admin_service: bool = False  # deepmcat.v1.AdminService, for callers with the scope admin
    artifacts: dict[ArtifactName, Path] = {}  # beside the default one, by name
    artifact_poll_s: Seconds = 2.0  # 0: what lies at the paths is not looked at again
    keep_artifacts: int = Field(default=1, ge=0, le=64)  # of those in force before, by name, for rollback
    max_artifact_bytes: int = Field(default=8192 * MIB, ge=MIB)  # of all that are loaded

    @model_validator(mode="after")
    def _together(self) -> Self:
        """What several settings have to be together."""
        if self.fronts > 1 and self.admin_service:
            raise ValueError(
                f"fronts is {self.fronts} and admin_service is on, whose calls would reach one of them only: "
                "change the artifact at its path, which all of them follow, or leave fronts at 1"
            )
        if self.encoder is not None and self.precision != "auto":
            raise ValueError("precision is of the engine here, and encoder names one elsewhere: leave one of them out")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together; one of them is missing")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key: client certificates come with TLS")
        tokens = (self.jwt_issuer, self.jwt_audience, self.jwt_jwks)
        if any(tokens) and not all(tokens):
            raise ValueError("jwt_issuer, jwt_audience and jwt_jwks belong together; some of them are missing")
        if self.certificate_scopes and self.tls_client_ca is None:
            raise ValueError("certificate_scopes needs tls_client_ca, which says whose certificates are believed")
        if self.tls_client_ca is not None and not self.authenticates:
            raise ValueError(
                "tls_client_ca needs certificate_scopes, which says who may do what, "
                'such as \'**\' = ["categorize", "read"] for every certificate; or jwt_issuer, for tokens beside it'
            )
        return self

    @property
    def authenticates(self) -> bool:
        """Whether callers have to say who they are."""
        return bool(self.certificate_scopes) or self.jwt_issuer is not None

    @property
    def quota(self) -> Quota:
        """That of a caller for whom `quotas` has no other."""
        return Quota(
            images_per_s=self.quota_images_per_s, bytes_per_s=self.quota_bytes_per_s, burst_s=self.quota_burst_s
        )

    @property
    def limits(self) -> Limits:
        """The core's limits."""
        return Limits(max_bytes=self.max_image_bytes, max_frames=self.max_frames, max_side=self.max_side)

    @property
    def worker_limits(self) -> WorkerLimits:
        """Those of a decoding worker."""
        return WorkerLimits(
            memory_bytes=self.decode_memory_bytes, cpu_s=self.decode_cpu_s, wall_s=self.decode_timeout_s
        )

    @property
    def workers(self) -> int:
        """The number of decoding workers."""
        return self.decode_workers or available_cpus()

    @property
    def shares_port(self) -> bool:
        """Whether other processes, its like, listen on the same port."""
        return self.fronts > 1

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Values only: `load` reads the environment and puts it in its place, above the file."""
        return (init_settings,)


def parse_artifacts(texts: Sequence[str]) -> dict[str, str]:
    """`["ct=/artifacts/ct"]` by name. Raises ConfigError."""
    artifacts: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not path or name in artifacts:
            raise ConfigError(f"--artifact takes NAME=PATH, each name once, not {text!r}")
        artifacts[name] = path
    return artifacts


def load(*, flags: Mapping[str, Any] | None = None, sets: Sequence[str] = (), file: Path | None = None) -> Settings:
    """The settings of one start. flags: None where not given. Raises ConfigError."""
    data = config.read_file(file) if file else {}
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    _refuse_misspelt(os.environ)
    for source in (EnvSettingsSource(Settings)(), config.parse_settings(sets), given):
        data = config.merged(data, source)
    settings = config.validate(Settings, data)
    _refuse_missing_tracing(settings)
    _refuse_open_plaintext(settings)
    _refuse_open_administration(settings)
    return settings


def _refuse_misspelt(environ: Mapping[str, str]) -> None:
    """Refuse DEEPMCAT_* variables that are nearly a setting; leave others alone.

    Others set such names too: Kubernetes gives every pod DEEPMCAT_SERVICE_HOST and the like where a Service is called
    deepmcat, and DEEPMCAT_DATA is the benchmarks'.
    """
    prefix = "DEEPMCAT_"
    for name in sorted(environ):
        key = name.removeprefix(prefix).lower()
        if not name.startswith(prefix) or key in Settings.model_fields:
            continue
        if near := difflib.get_close_matches(key, Settings.model_fields, n=1, cutoff=0.8):
            raise ConfigError(f"there is no setting for {name}; did you mean {prefix}{near[0].upper()}?")


def _refuse_missing_tracing(settings: Settings) -> None:
    """Before anything is loaded."""
    if settings.trace_endpoint is not None:
        try:
            import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        except ImportError as error:
            raise MissingExtra("opentelemetry", "otel") from error


def _refuse_open_plaintext(settings: Settings) -> None:
    ways = {
        "listen": "give it a certificate (tls_cert, tls_key), listen on 127.0.0.1 (behind what terminates TLS)",
        "admin": "have it on 127.0.0.1",  # always plaintext: health and metrics
    }
    for name, way in ways.items():
        address = getattr(settings, name)
        secured = name == "listen" and settings.tls_cert is not None
        if not parse_address(address).is_loopback and not secured and not settings.insecure:
            raise ConfigError(
                f"{name} {address} can be reached from other machines and speaks plaintext: {way}, "
                "or allow it with --insecure"
            )


def _refuse_open_administration(settings: Settings) -> None:
    """Not even --insecure lets everybody on a network change what is served."""
    if settings.authenticates or "admin" not in settings.anonymous_scopes:
        return
    if not parse_address(settings.listen).is_loopback:
        raise ConfigError(
            f"anonymous_scopes has admin and listen {settings.listen} can be reached from other machines: "
            "listen on 127.0.0.1, or have callers say who they are (certificate_scopes, jwt_issuer)"
        )
