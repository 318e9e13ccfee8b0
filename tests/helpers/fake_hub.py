"""A server on loopback from which huggingface_hub (checked with 1.31 and 2.4) downloads a model as from the Hub.

It knows one model, at one commit. `hold` names a file of which it sends only the first half, until `release` is set.
With `xet`, it says that its large files lie in Xet storage, which answers nothing: hf_xet waits for it.
"""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote

from tests.helpers.loopback import Server

COMMIT = "c0ffee" + "0" * 34
# What a process must do to download from here, before it imports the kit; it is offline otherwise.
CONNECT = """
from huggingface_hub import constants
constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.DOWNLOAD_CHUNK_SIZE = "{0}", False, 1000
constants.HUGGINGFACE_CO_URL_TEMPLATE = "{0}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
"""


class FakeHub:
    """The server and what it has seen.

    Attributes:
        name: id of the model.
        sent: the files that were asked for with GET, in order.
        held: set when the first half of `hold` is sent, or when Xet storage was asked.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.sent: list[str] = []
        self.hold, self.xet = "", False
        self.held, self.release = threading.Event(), threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.answer(self, False)

            def do_GET(self) -> None:
                hub.answer(self, True)

            def log_message(self, *words: object) -> None:
                pass

        self.server = Server(Handler)
        self.url = self.server.url

    def answer(self, handler: BaseHTTPRequestHandler, with_body: bool) -> None:
        """Answer one request."""
        path, beginning = unquote(handler.path), f"/{self.name}/resolve/"
        if path.startswith("/xet-token"):
            headers = {
                "X-Xet-Cas-Url": f"{self.url}/cas",
                "X-Xet-Access-Token": "t",
                "X-Xet-Token-Expiration": "9" * 10,
            }
            self.reply(handler, 200, headers | {"Content-Length": "0"})
        elif path.startswith("/cas"):
            self.held.set()
            self.release.wait(60)
        elif not path.startswith(beginning):
            self.reply(handler, 404, {"X-Error-Code": "RepoNotFound", "Content-Length": "0"})
        elif not (file := self.folder / path.rpartition("/")[2]).is_file():
            missing = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT, "Content-Length": "0"}
            self.reply(handler, 404, missing)
        else:
            body = file.read_bytes()
            digest = hashlib.sha256(body).hexdigest()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"', "Content-Length": str(len(body))}
            if self.xet and file.suffix == ".safetensors":
                headers |= {"X-Xet-Hash": digest, "X-Xet-Refresh-Route": f"{self.url}/xet-token"}
            self.reply(handler, 200, headers)
            if with_body:
                self.sent.append(file.name)
                self.send(handler, file.name, body)

    def reply(self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
        """Send the beginning of an answer."""
        handler.send_response(status)
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.end_headers()

    def send(self, handler: BaseHTTPRequestHandler, name: str, body: bytes) -> None:
        """Send a file; of the one that is held, only the first half."""
        half = len(body) // 2
        handler.wfile.write(body[:half])
        handler.wfile.flush()
        if name == self.hold:
            self.held.set()
            self.release.wait(60)
            handler.close_connection = True
            return
        handler.wfile.write(body[half:])

    def close(self) -> None:
        """Stop the server."""
        self.release.set()
        self.server.close()
