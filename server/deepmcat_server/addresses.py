"""Where something is: an address to listen on, a model in a Triton, a file or a page. Settings name them in text."""

from __future__ import annotations

import ipaddress
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

TRACES_PATH = "/v1/traces"
"""Where collectors take traces, where they are not told otherwise (OTLP, section "OTLP/HTTP Request")."""


class Address(NamedTuple):
    """Where a port is bound."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        """HOST:PORT, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """HOST:PORT or [IPV6]:PORT; port 0 is any free one. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("not HOST:PORT")
    return Address(host, int(port))


class RemoteEncoder(NamedTuple):
    """A model in a Triton."""

    address: str
    model: str
    tls: bool


def parse_encoder(text: str) -> RemoteEncoder:
    """triton://HOST:PORT/MODEL, or tritons:// for TLS. Raises ValueError."""
    parts = urlsplit(text)
    model = parts.path.removeprefix("/")
    if parts.scheme not in ("triton", "tritons") or not model or "/" in model or parts.query or parts.fragment:
        raise ValueError("not triton://HOST:PORT/MODEL")
    return RemoteEncoder(str(parse_address(parts.netloc)), model, parts.scheme == "tritons")


def _checked(text: str) -> str:
    try:
        parse_address(text)
    except ValueError as error:
        raise PydanticCustomError("address", "HOST:PORT is needed, such as 127.0.0.1:50051") from error
    return text


def _checked_encoder(text: str) -> str:
    try:
        parse_encoder(text)
    except ValueError as error:
        message = "triton://HOST:PORT/MODEL is needed, or tritons:// for TLS, such as triton://127.0.0.1:8001/encoder"
        raise PydanticCustomError("encoder", message) from error
    return text


def _checked_location(text: str) -> str:
    parts = urlsplit(text)
    loopback = parts.scheme == "http" and Address(parts.hostname or "", 0).is_loopback
    if "://" in text and not loopback and not (parts.scheme == "https" and parts.hostname):
        raise PydanticCustomError("location", "an https URL is needed, http on loopback only, or the path of a file")
    return text


def _checked_endpoint(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise PydanticCustomError("endpoint", "the URL of a collector is needed, such as http://127.0.0.1:4318")
    return text if parts.path.strip("/") else text.rstrip("/") + TRACES_PATH


AddressText = Annotated[str, AfterValidator(_checked)]
EncoderText = Annotated[str, AfterValidator(_checked_encoder)]
Endpoint = Annotated[str, AfterValidator(_checked_endpoint)]
Location = Annotated[str, AfterValidator(_checked_location)]
