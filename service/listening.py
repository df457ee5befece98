"""The server's address. It is taken before anything is loaded; an error is one line of advice."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from typing import Final, TypeAlias

_BACKLOG: Final = 2048
_NOT_HERE: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_ADVICE: Final[Mapping[int, str]] = {
    errno.EADDRINUSE: (
        "port {port} of {host} is in use by another program; choose another port with "
        "EMBEDDER_PORT or --port, or see who has it: lsof -nP -iTCP:{port} -sTCP:LISTEN"
    ),
    errno.EACCES: (
        "this user may not listen on port {port} of {host}; "
        "choose a port from 1024 on with EMBEDDER_PORT or --port"
    ),
    errno.EADDRNOTAVAIL: (
        "{host} is no address of this machine; choose one of its own with EMBEDDER_HOST or --host "
        "(127.0.0.1: only this machine can connect; 0.0.0.0: all its addresses)"
    ),
}
_OTHER: Final = (
    "cannot listen on port {port} of {host} ({reason}); "
    "choose another address with EMBEDDER_HOST and EMBEDDER_PORT"
)

# the family, and the address in the form that `bind` takes
_Address: TypeAlias = tuple[socket.AddressFamily, tuple[str, int]]


class CannotListen(Exception):
    """The address cannot be used; the message says what to do."""


def listen(host: str, port: int) -> list[socket.socket]:
    """Return sockets that listen on every address of the host; port 0 means any free port.

    They listen at once: as long as neither listens, two programs may be bound to the same port.

    Raises
    ------
    CannotListen : the address is taken, forbidden, or not of this machine.
    """
    sockets: list[socket.socket] = []
    refused: OSError | None = None
    try:
        for family, address in _addresses(host, port):
            try:
                sockets.append(_listening(family, address[0], port))
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                refused = (
                    error  # the name has IPv4 and IPv6 addresses, and the machine lacks one of them
                )
                continue
            port = sockets[0].getsockname()[1]
        if refused is not None and not sockets:
            raise refused
    except OSError as error:
        for listening in sockets:
            listening.close()
        advice = _ADVICE.get(error.errno or 0, _OTHER)
        raise CannotListen(
            advice.format(host=host or "any address", port=port, reason=error.strerror or error)
        ) from error
    return sockets


def url(listening: socket.socket) -> str:
    """Return the URL under which clients on this machine reach a socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _addresses(host: str, port: int) -> list[_Address]:
    every = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = ((family, (str(address[0]), port)) for family, _, _, _, address in every)
    return list(dict.fromkeys(addresses))


def _listening(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((host, port))
        made.listen(_BACKLOG)
    except BaseException:
        made.close()
        raise
    return made
