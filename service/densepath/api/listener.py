"""The sockets of the service: taken before the pair is loaded, so that a port in use is found at once."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from densepath.errors import InvalidRequestError
from densepath.forks import closed_in_forks

BACKLOG = 2048  # connections that wait to be accepted, as uvicorn's own
_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


@contextmanager
def listening(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Sockets that listen on every address of `host`. Port 0 chooses a free one.

    A connection that arrives before a server runs waits for it. Raises InvalidRequestError if the host does
    not resolve, if it is not an address of this machine, or if the port is taken or not permitted.
    """
    with ExitStack() as opened:
        try:
            found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            raise InvalidRequestError(
                f"--host {host} cannot be resolved ({error}): give a name or an address of this machine"
            ) from error
        sockets = []
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                listener = opened.enter_context(socket.socket(family, kind, protocol))
                opened.enter_context(closed_in_forks(listener))  # an engine may be forked
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind(address)
                listener.listen(BACKLOG)
            except OSError as error:
                if error.errno in _NO_SUCH_ADDRESS and len(found) > 1:
                    continue  # a name such as localhost, on a machine without IPv6
                raise InvalidRequestError(_refused(error, host, port)) from error
            sockets.append(listener)
        if not sockets:
            raise InvalidRequestError(f"--host {host} is not an address of this machine: give one that is")
        yield sockets


def _refused(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"--port {port} on {host} is in use: stop the process that listens on it, or give another port"
    if error.errno in _NO_SUCH_ADDRESS:
        return f"--host {host} is not an address of this machine: give one that is"
    if error.errno == errno.EACCES:
        return f"--port {port} needs a permission that this user does not have: give a port from 1024 on"
    return f"cannot listen on port {port} of {host}: {error.strerror}"
