"""Why a server cannot be reached: the name, the connection, TLS and the call, each tried by itself until one fails.

gRPC reports all of these as UNAVAILABLE. Here the standard library's sockets and TLS go the same way and say more.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator

from deepmcat_client.checks import Check, Status
from deepmcat_client.errors import ClientError, PermissionDenied, Unauthenticated
from deepmcat_client.security import Tls, TokenFile
from deepmcat_client.targets import Endpoint, endpoints, parse_targets

TIMEOUT_S = 5.0
EXPIRES_SOON_S = 14 * 24 * 3600.0

# RFC 9113 3.4: what a client sends first, with an empty SETTINGS frame; a server sends SETTINGS (type 4) first.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS, _FRAME_HEADER, _TLS_ALERT = 4, 9, 0x15

_GIVE_TLS = "give --tls, or --tls-ca FILE"
_GIVE_CERT = "it asks for a certificate of yours, or does not trust it: --tls-cert FILE --tls-key FILE"

# X509_V_ERR_… of OpenSSL's x509_vfy.h.
_CERTIFICATE = {
    9: "its certificate is not valid yet; are both clocks right?",
    10: "its certificate has expired; it needs a new one, or this machine's clock is wrong",
    18: "it signs its certificate itself, and nobody here trusts it: --tls-ca FILE with that certificate",
    19: "its certificate is signed by somebody whom nobody here trusts: --tls-ca FILE with their certificate",
    20: "its certificate is signed by somebody whom nobody here trusts: --tls-ca FILE with their certificate",
    62: "its certificate is for another name; ask by that name, or give --tls-server-name NAME",
    64: "its certificate is for another name than this address; give --tls-server-name NAME",
}


class _Unreachable(Exception):
    """What is wrong, as a sentence."""


def look(text: str, tls: Tls | None, token: TokenFile | None) -> Iterator[Check]:
    """The checks of each target, as they are made. Raises InvalidRequest for what is no address."""
    for target in parse_targets(text):
        reached = True
        for endpoint in endpoints(target):
            checks = [*_network(endpoint, tls)]
            yield from checks
            reached = reached and all(check.status is not Status.FAIL for check in checks)
        if reached:
            yield _call(target, tls, token)


def _network(endpoint: Endpoint, tls: Tls | None) -> Iterator[Check]:
    try:
        addresses = _resolve(endpoint)
    except _Unreachable as error:
        yield Check(name=endpoint.host, status=Status.FAIL, detail=str(error))
        return
    for address in addresses:
        name = f"[{address}]:{endpoint.port}" if ":" in address else f"{address}:{endpoint.port}"
        try:
            detail, status = _greet(address, endpoint, tls)
        except _Unreachable as error:
            detail, status = str(error), Status.FAIL
        yield Check(name=name, status=status, detail=detail)


def _resolve(endpoint: Endpoint) -> list[str]:
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise _Unreachable("this name is not known here; is it spelt right, and does DNS have it?") from error
    return [*dict.fromkeys(str(entry[4][0]) for entry in found)]


def _greet(address: str, endpoint: Endpoint, tls: Tls | None) -> tuple[str, Status]:
    """Connect, encrypt where wanted, and see whether HTTP/2 answers. Raises _Unreachable."""
    try:
        with socket.create_connection((address, endpoint.port), timeout=TIMEOUT_S) as plain:
            if tls is None:
                _see_settings(plain)
                return "answers in plain text", Status.OK
            with _context(tls).wrap_socket(plain, server_hostname=tls.server_name or endpoint.host) as encrypted:
                if encrypted.selected_alpn_protocol() != "h2":
                    raise _Unreachable("it speaks TLS but no HTTP/2, which gRPC needs (ALPN h2)")
                _see_settings(encrypted)
                return _certificate_facts(encrypted)
    except ConnectionRefusedError as error:
        raise _Unreachable("nothing listens there; is the server running, and on this port?") from error
    except TimeoutError as error:
        raise _Unreachable(f"no answer within {TIMEOUT_S:g} seconds; a firewall, or another address?") from error
    except ssl.SSLError as error:
        raise _Unreachable(_tls_sentence(error)) from error
    except OSError as error:
        raise _Unreachable(f"the connection failed: {error.strerror or type(error).__name__}") from error


def _see_settings(connection: socket.socket) -> None:
    """Greet as HTTP/2 does. Raises _Unreachable where something else answers, or nothing."""
    encrypted = isinstance(connection, ssl.SSLSocket)
    connection.sendall(_PREFACE)
    try:
        answer = connection.recv(_FRAME_HEADER)
    except ConnectionResetError:
        answer = b""
    if len(answer) == _FRAME_HEADER and answer[3] == _SETTINGS:
        return
    if answer[:1] == bytes((_TLS_ALERT,)) and not encrypted:
        raise _Unreachable(f"it speaks TLS: {_GIVE_TLS}")
    if not answer:
        way_out = _GIVE_CERT if encrypted else f"perhaps it speaks TLS: {_GIVE_TLS}"
        raise _Unreachable(f"it closes the connection at once; {way_out}")
    raise _Unreachable("what answers there speaks no HTTP/2, so it is no gRPC server")


def _context(tls: Tls) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        context.set_alpn_protocols(["h2"])
        if tls.cert is not None:
            context.load_cert_chain(tls.cert, tls.key)
    except (ssl.SSLError, OSError) as error:
        why = getattr(error, "reason", None) or error.strerror or type(error).__name__
        raise _Unreachable(f"your certificates or your key cannot be used ({why})") from error
    return context


def _tls_sentence(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _CERTIFICATE.get(error.verify_code, f"its certificate is not accepted: {error.verify_message}")
    reason = error.reason or ""
    if "WRONG_VERSION" in reason or "RECORD_LAYER" in reason or "HTTP_REQUEST" in reason:
        return "it does not speak TLS; leave out --tls and its kin if it is this machine, or turn TLS on there"
    if "ALERT" in reason:  # the server's side of the handshake says no
        return f"{_GIVE_CERT} ({reason})"
    return f"TLS fails ({reason or type(error).__name__})"


def _certificate_facts(encrypted: ssl.SSLSocket) -> tuple[str, Status]:
    certificate = encrypted.getpeercert() or {}
    until = str(certificate.get("notAfter", ""))
    left_s = ssl.cert_time_to_seconds(until) - time.time() if until else EXPIRES_SOON_S
    detail = f"answers over {encrypted.version()}; its certificate is valid until {until}"
    return detail, Status.OK if left_s >= EXPIRES_SOON_S else Status.WARN


def _call(target: str, tls: Tls | None, token: TokenFile | None) -> Check:
    """Ask what it serves, as a client does."""
    from deepmcat_client.client import Client  # gRPC, which a broken install may lack, is needed for this only
    from deepmcat_client.retry import NO_RETRY

    try:
        with Client(target, tls=tls, token=token, timeout_s=TIMEOUT_S, retry=NO_RETRY) as client:
            info = client.get_artifact()
    except Unauthenticated as error:
        way_out = "--token-file FILE, or a certificate of yours (--tls-cert), says who you are"
        return Check(
            name="deepmcat.v1", status=Status.FAIL, detail=f"it does not know who is asking ({error}); {way_out}"
        )
    except PermissionDenied as error:
        return Check(name="deepmcat.v1", status=Status.FAIL, detail=f"it knows who is asking and says no: {error}")
    except ClientError as error:
        return Check(name="deepmcat.v1", status=Status.FAIL, detail=str(error))
    version = info.serving.version if info.serving else "?"
    detail = f"server {version} answers, with artifact {info.artifact.artifact_id[:12]}"
    return Check(name="deepmcat.v1", status=Status.OK, detail=detail)
