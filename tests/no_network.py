"""Importing this blocks every socket that leaves the machine, for good: in this process and in what it forks."""

from __future__ import annotations

import ipaddress
import socket
import sys
from typing import Any

_LOCAL = {"", "localhost", "localhost.localdomain", "ip6-localhost", socket.gethostname(), socket.getfqdn()}


class NetworkBlocked(RuntimeError):
    """A test, or what it tests, wanted to leave the machine."""


def _local(host: Any) -> bool:
    if host is None or isinstance(host, (bytes, bytearray)):
        return True
    if str(host) in _LOCAL:
        return True
    try:
        address = ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto") and isinstance(args[-1], tuple) and not _local(args[-1][0]):
        raise NetworkBlocked(f"connection to {args[-1][0]!r}")
    if event in ("socket.getaddrinfo", "socket.gethostbyname") and not _local(args[0]):
        raise NetworkBlocked(f"look-up of {args[0]!r}")


sys.addaudithook(_watch)
