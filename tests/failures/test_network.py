"""Nothing touches the network: the whole suite runs with it blocked, and so do the runs it starts."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path

import no_network
import pytest
from runs import Running, wait_until


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: socket.create_connection(("192.0.2.1", 80), timeout=0.1),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)),
        lambda: socket.getaddrinfo("huggingface.co", 443),
        lambda: urllib.request.urlopen("http://example.org", timeout=0.1),
    ],
)
def test_the_block_works_here(attempt) -> None:
    with pytest.raises((no_network.NetworkBlocked, OSError)) as caught:
        attempt()
    assert "connection to" in str(caught.value) or "look-up of" in str(caught.value)


def _leave() -> None:
    socket.create_connection(("192.0.2.1", 80), timeout=0.1)


def test_the_block_works_in_runs(tmp_path: Path) -> None:
    ended = Running(tmp_path, _leave).end()
    assert ended.code == 1 and ended.last == "no_network.NetworkBlocked: look-up of '192.0.2.1'"


def test_this_machine_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        wait_until(lambda: server.accept())
