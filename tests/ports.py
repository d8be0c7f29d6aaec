"""Ports of this machine for servers that a test starts in other processes."""

import contextlib
import random
import socket


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, below those that the system gives to clients.

    So no client gets one of them before the server starts, or while it is started again.
    """
    ports: set[int] = set()
    while len(ports) < count:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.add(port)
    return list(ports)
