"""Who may use the server: which host names, which web pages, and which API keys are accepted.

A browser sends requests for any page that is open. A page of another origin could therefore use a
server on this machine; and under a host name of its own that points to this machine (DNS rebinding)
it could read the answers. Browsers alone set the headers that reveal such requests, so no other
client is affected.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import socket
from collections.abc import Iterable
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import HostNotAllowed, OriginNotAllowed, ServiceError, Unauthorized, of_error
from service.settings import ANY, Settings

_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::\d*)?")
# Names with these suffixes cannot be registered: RFC 6762, RFC 8375, and ICANN for `internal`.
_PRIVATE_SUFFIXES: Final = (".local", ".internal", ".home.arpa")
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}
_SHOWN: Final = 100  # characters of a header that a message repeats


class Access:
    """Middleware that refuses requests which a browser sends for a page of a stranger."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts = Hosts(settings)
        self._origins = frozenset(settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            try:
                self._hosts.check(headers.getlist("host"))
                check_origin(scope["method"], headers, self._origins)
            except ServiceError as error:
                await of_error(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Hosts:
    """The host names under which this server may be asked.

    Addresses are always allowed, because no name was resolved to reach one. A server with an API
    key accepts any name unless told otherwise: the page of a stranger does not know the key.
    """

    def __init__(self, settings: Settings) -> None:
        names = settings.allowed_hosts
        self._any = ANY in names or (not names and bool(settings.keys))
        self._suffixes = tuple(name[1:] for name in names if name.startswith("*."))
        self._names = {"localhost", settings.host.lower(), *names}
        self._wide = not names and not _is_loopback(settings.host)
        if self._wide:
            self._names.add(socket.gethostname().lower())

    def check(self, hosts: list[str]) -> None:
        """Raise HostNotAllowed unless the request was sent to an allowed name or an address."""
        if self._any or hosts in ([], [""]):  # browsers always send Host; HTTP/1.0 clients need not
            return
        match = _HOST.fullmatch(hosts[0].lower())
        if len(hosts) > 1 or match is None or not self._allows(match[1].removesuffix(".")):
            raise HostNotAllowed(", ".join(hosts)[:_SHOWN])

    def _allows(self, name: str) -> bool:
        if name in self._names or name.endswith((".localhost", *self._suffixes)):
            return True
        if _is_address(name):
            return True
        return self._wide and ("." not in name or name.endswith(_PRIVATE_SUFFIXES))


def check_origin(method: str, headers: Headers, allowed: frozenset[str]) -> None:
    """Raise OriginNotAllowed if a browser sent this for a page of another origin."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if (origin is None and site is None) or ANY in allowed or origin in allowed:
        return
    if site in ("same-origin", "none"):
        return
    if origin is not None and not _same_host(origin, headers.get("host", "")):
        raise OriginNotAllowed(origin[:_SHOWN])
    followed_link = method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
    if site == "cross-site" and not followed_link:
        raise OriginNotAllowed(origin)


def check_key(authorization: str, keys: Iterable[bytes]) -> None:
    """Raise Unauthorized unless the header holds one of the keys.

    Every key is compared in full, so that the time taken does not tell how much of a key is right.
    """
    scheme, _, token = authorization.partition(" ")
    sent = token.strip().encode("latin-1")  # headers are decoded as latin-1
    matches = [secrets.compare_digest(sent, key) for key in keys]
    if scheme.lower() != "bearer" or not any(matches):
        raise Unauthorized


def _same_host(origin: str, host: str) -> bool:
    scheme, _, netloc = origin.lower().partition("://")
    port = _DEFAULT_PORTS.get(scheme, "")
    return bool(netloc) and netloc.removesuffix(port) == host.lower().removesuffix(port)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    if not _is_address(host):
        return host.lower() == "localhost"
    return ipaddress.ip_address(host).is_loopback
