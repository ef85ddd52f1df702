"""Where servers are, as a person writes it: HOST:PORT, several with commas, or a name of gRPC such as dns:///HOST:PORT."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from deepmcat_client.errors import InvalidRequest

# gRPC's own way to name several addresses has commas of its own.
_MANY_ADDRESSES = ("ipv4:", "ipv6:")
_DNS = "dns:"


class Endpoint(NamedTuple):
    """A host, without the brackets of IPv6, and a port."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_targets(text: str) -> tuple[str, ...]:
    """The targets, each for a channel of its own. Raises InvalidRequest."""
    parts = [text] if text.startswith(_MANY_ADDRESSES) else [part.strip() for part in text.split(",")]
    for part in parts:
        if not part or re.search(r"\s", part):
            raise InvalidRequest(f"{text!r} names no server; give HOST:PORT, dns:///HOST:PORT, or several with commas")
        if "/" not in part and not part.startswith((_DNS, "unix", *_MANY_ADDRESSES)):
            _endpoint(part)
    return tuple(dict.fromkeys(parts))


def is_many(target: str) -> bool:
    """Whether there can be several servers behind a target, so that calls through one channel are spread."""
    return target.startswith((_DNS, *_MANY_ADDRESSES))


def is_local(target: str) -> bool:
    """Whether nothing sent there leaves this machine."""
    if target.startswith("unix"):
        return True
    return all(endpoint.is_loopback for endpoint in endpoints(target))


def endpoints(target: str) -> tuple[Endpoint, ...]:
    """The hosts and ports that a target names; of a unix socket none. Raises InvalidRequest for a scheme not known."""
    if target.startswith("unix"):
        return ()
    if target.startswith(_MANY_ADDRESSES):
        return tuple(_endpoint(part) for part in target.partition(":")[2].split(","))
    if target.startswith(_DNS):
        return (_endpoint(target.removeprefix(_DNS).rpartition("/")[2]),)
    return (_endpoint(target),)


def _endpoint(text: str) -> Endpoint:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\[\]:/]+)):(\d{1,5})", text)
    if match is None or not 0 < int(match[3]) < 2**16:
        raise InvalidRequest(f"{text!r} is no address; give HOST:PORT, with an IPv6 host in brackets")
    return Endpoint(match[1] or match[2], int(match[3]))
