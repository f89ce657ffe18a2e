"""What answers at the address of a cluster: before Ray is asked, which would try for minutes, and
what Ray says of it, which is more than a line."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from typing import IO

from qbench.errors import InputError

ANSWER_S = 5.0  # for a cluster's address to be reachable
BEGIN_S = 20.0  # for what is there to say what it is: a busy head may take seconds
SETTINGS = b"\x04"  # a frame of HTTP/2, with which either side of gRPC begins (RFC 9113, 3.4)
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + SETTINGS + bytes(5)


def check(address: str) -> None:
    """Raise InputError where nothing answers at HOST:PORT, or something else than a head."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(f"--ray {address}: local, auto, or HOST:PORT of a cluster's head")
    said = b""
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_S) as there:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            there.settimeout(BEGIN_S)
            there.sendall(HTTP2)
            with contextlib.suppress(TimeoutError):
                said = there.recv(4)
    except OSError as error:
        why = error.strerror or str(error)
        raise InputError(f"--ray {address}: no cluster answers there: {why}") from None
    if said[3:] != SETTINGS:
        raise InputError(f"--ray {address}: what answers there is no Ray cluster's head")


@contextlib.contextmanager
def own_errors() -> Iterator[IO[bytes]]:
    """The file that takes standard error meanwhile: Ray's C++ writes there, a line each second."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
