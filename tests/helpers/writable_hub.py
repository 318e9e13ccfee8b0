"""A Hub on loopback to which huggingface_hub (checked with 2.4) writes as to the real one: repositories, LFS, commits.

`fail` lets the next calls of a kind end as an error or without an answer. It speaks no Xet; clients set
HF_HUB_DISABLE_XET. Files whose name ends in `.safetensors` or `.png` go through LFS, in parts where `part` is set.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.helpers.loopback import Server

TOKEN = "hf_" + "T" * 34
LFS = (".safetensors", ".png")


@dataclass
class Repository:
    """A repository: its commits as {path: bytes}, newest last."""

    private: bool = False
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"*.safetensors lfs\n"}])
    messages: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the newest commit."""
        return self.commits[-1]

    @property
    def head(self) -> str:
        """The id of the newest commit."""
        return hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()


class WritableHub:
    """The server and what it holds.

    Attributes:
        repositories: {USER/REPO: its state}.
        renamed: {former USER/REPO: the present one}, to which calls are redirected.
        objects: {sha256: bytes} of what was uploaded by LFS.
        calls: `METHOD path` of each call, in order.
        tokens: the Authorization headers that came.
        part: bytes of a part of an upload; 0 uploads in one piece.
        held: set when a call is held until `release` is set.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.renamed: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.tokens: set[str | None] = set()
        self.part = 0
        self.faults: list[tuple[str, Any, dict[str, str]]] = []
        self.held, self.release = threading.Event(), threading.Event()
        self.lock = threading.Lock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            do_POST = do_PUT = do_GET

            def log_message(self, *words: object) -> None:
                pass

        self.server = Server(Handler)
        self.url = self.server.url

    def fail(self, call: str, *actions: Any, **headers: str) -> None:
        """Let the next calls that match the expression `call` end badly.

        Each action is a status; `cut` (no answer, nothing done), `lost` (done, and no answer), `hold` (wait for
        `release`, then go on), or a function that is called before the call goes on.
        """
        self.faults += [
            (call, action, {name.replace("_", "-"): text for name, text in headers.items()}) for action in actions
        ]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        path = unquote(urlsplit(handler.path).path)
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        call = f"{handler.command} {path}"
        self.calls.append(call)
        if not path.startswith("/storage"):
            self.tokens.add(handler.headers.get("Authorization"))
        fault = next((fault for fault in self.faults if re.search(fault[0], call)), None)
        if fault:
            self.faults.remove(fault)
        action = fault[1] if fault else None
        if action == "cut":
            handler.close_connection = True
            return
        if isinstance(action, int):
            told = {"error": f"as the test wants it, to {handler.headers.get('Authorization')}"}  # servers may echo it
            self.reply(handler, action, told, fault[2])
            return
        if action == "hold":
            self.held.set()
            self.release.wait(60)
        if callable(action):
            action()
        with self.lock:
            status, value, headers = self.route(handler.command, path, body)
        if action == "lost":
            handler.close_connection = True
            return
        self.reply(handler, status, value, headers)

    def reply(self, handler: BaseHTTPRequestHandler, status: int, value: Any, headers: dict[str, str]) -> None:
        """Send an answer in JSON."""
        data = json.dumps(value).encode()
        handler.send_response(status)
        for name, text in (headers | {"Content-Length": str(len(data)), "Content-Type": "application/json"}).items():
            handler.send_header(name, text)
        handler.end_headers()
        handler.wfile.write(data)

    def route(self, method: str, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """(status, answer, headers) of a call."""
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            if name in self.repositories:
                return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}, {}
            self.repositories[name] = Repository(wanted.get("visibility") == "private")
            return 200, {"url": f"{self.url}/{name}", "name": name}, {}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        if match := re.fullmatch(r"/storage/([0-9a-f]{64})(?:/(\d+|done))?", path):
            return self.store(method, *match.groups(), body)
        if match := re.fullmatch(
            r"(?:/api/models)?/([^/]+/[^/]+?)(\.git/.*|/verify|/preupload/main|/commit/main|/revision/main)?", path
        ):
            name, rest = match[1], match[2] or ""
            if name in self.renamed:
                return 307, {}, {"Location": self.url + path.replace(name, self.renamed[name], 1)}
            if name not in self.repositories:
                return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
            steps = {
                "": self.info,
                "/revision/main": self.info,
                "/preupload/main": self.preupload,
                "/commit/main": self.commit,
                "/verify": self.verify,
            }
            return steps.get(rest, self.batch)(name, body)
        return 404, {"error": f"no such call: {path}"}, {}

    def info(self, name: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """What a repository holds."""
        repository = self.repositories[name]
        siblings = []
        for path, data in repository.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry = {"rfilename": path, "size": len(data), "blobId": blob}
            if path.endswith(LFS):
                entry["blobId"] = hashlib.sha1(data + b"pointer").hexdigest()
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        return 200, {"id": name, "sha": repository.head, "private": repository.private, "siblings": siblings}, {}

    def preupload(self, name: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """Which files go through LFS, and what is there already."""
        files = []
        for file in json.loads(body)["files"]:
            mode = "lfs" if file["path"].endswith(LFS) else "regular"
            data = self.repositories[name].files.get(file["path"])
            kinds = {"lfs": lambda d: hashlib.sha256(d), "regular": lambda d: hashlib.sha1(b"blob %d\0" % len(d) + d)}
            oid = None if data is None else kinds[mode](data).hexdigest()
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return 200, {"files": files}, {}

    def batch(self, name: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """Where to upload."""
        objects = []
        for wanted in json.loads(body)["objects"]:
            entry, place = {"oid": wanted["oid"], "size": wanted["size"]}, f"{self.url}/storage/{wanted['oid']}"
            if wanted["oid"] not in self.objects:
                upload = {"href": place}
                if self.part:
                    count = -(-wanted["size"] // self.part)
                    parts = {f"{n:05d}": f"{place}/{n}" for n in range(1, count + 1)}
                    upload = {"href": f"{place}/done", "header": {"chunk_size": str(self.part), **parts}}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{self.url}/{name}/verify"}}
            objects.append(entry)
        return 200, {"transfer": "multipart" if self.part else "basic", "objects": objects}, {}

    def store(self, method: str, oid: str, part: str | None, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """Take an upload, or a part of one, or put the parts together."""
        if part == "done":
            numbers = [entry["partNumber"] for entry in json.loads(body)["parts"]]
            body = b"".join(self.parts.pop(f"{oid}/{number}") for number in numbers)
        elif part:
            self.parts[f"{oid}/{part}"] = body
            return 200, {}, {"ETag": f'"{part}"'}
        assert hashlib.sha256(body).hexdigest() == oid
        self.objects[oid] = body
        return 200, {}, {}

    def verify(self, name: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """Whether an upload is there."""
        wanted = json.loads(body)
        return (200, {}, {}) if len(self.objects.get(wanted["oid"], b"")) == wanted["size"] else (422, {}, {})

    def commit(self, name: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """Make a commit, unless another one came between."""
        repository = self.repositories[name]
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repository.head):
            return 412, {"error": "A commit has happened since. Please refresh and try again."}, {}
        files = dict(repository.files)
        for line in lines[1:]:
            value = line["value"]
            assert line["key"] in ("file", "lfsFile"), line["key"]
            content = base64.b64decode(value["content"]) if line["key"] == "file" else self.objects[value["oid"]]
            files[value["path"]] = content
        repository.commits.append(files)
        repository.messages.append(header["summary"])
        url = f"{self.url}/{name}/commit/{repository.head}"
        return 200, {"success": True, "commitOid": repository.head, "commitUrl": url}, {}

    def close(self) -> None:
        """Stop the server."""
        self.release.set()
        self.server.close()
