"""The server of tests/helpers/loopback.py: it prints nothing, and its faults are not lost."""

import socket
import struct
import threading
import urllib.request
from http.client import RemoteDisconnected
from http.server import BaseHTTPRequestHandler

import pytest

from tests.helpers.loopback import Server


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/fault":
            raise ValueError("a fault of the handler")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words):
        pass


def test_a_client_that_resets_its_connection_prints_nothing(capfd, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(Server, "shutdown_request", lambda self, request: ended.set())  # the last that a thread does
    server = Server(Handler)
    with socket.create_connection(("127.0.0.1", server.server_port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close by RST
    assert ended.wait(60)
    server.close()
    assert capfd.readouterr() == ("", "")


def test_a_fault_of_a_handler_is_raised_and_not_printed(capfd):
    server = Server(Handler)
    with pytest.raises(RemoteDisconnected):
        urllib.request.urlopen(f"{server.url}/fault")
    with pytest.raises(ValueError, match="a fault of the handler"):
        server.close()
    assert capfd.readouterr() == ("", "")
