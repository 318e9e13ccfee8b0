"""A server on loopback that answers the official client (kaggle 2.2.5, kagglesdk 0.1.38) as Kaggle does, or badly.

It checks what the client sends as far as the kit depends on it, and does not imitate Kaggle beyond that. `faults[call]`
is a list from which each call takes one:

- a status, or (status, headers), or (status, headers, bytes);
- `cut`: the connection breaks before anything is done;
- `cut after`: it breaks when everything is done;
- `half`: it breaks in the middle of the answer;
- `late`: it breaks first, and everything is done afterwards;
- `slow`: there is no answer until the client hangs up;
- `html`: the answer is a page instead of JSON;
- bytes: everything is done, and the answer is these bytes, said to be JSON;
- `redirect dead`, `redirect foreign`, `redirect plain`, `redirect loop`: everything is done, and the answer leads to a
  port where nobody listens, to another server, which answers every call as if it had been done, to that server by plain
  http and another name, or back to itself.

At `upload` and `resume`, the question how much of an upload has arrived, a redirect (with a status such as
`redirect foreign 307`) stores nothing.
"""

import base64
import contextlib
import json
import re
import socket
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.helpers.loopback import Server

USER, KEY, TOKEN = "ada", "5ecret0key0of0ada", "KGAT_t0ken0that0must0never0show"
# What another server answers: all that a call of the kit would take for success.
FOREIGN = {"message": "Successfully submitted", "ref": 4711, "versionNumber": 9, "active": True, "username": "eve"}
BASIC = "Basic " + base64.b64encode(f"{USER}:{KEY}".encode()).decode()


class FakeKaggle:
    """The server and what it has seen.

    Attributes:
        calls: (name, body) of each call.
        files: {name: bytes} of a run's output.
    """

    def __init__(self) -> None:
        self.faults: dict[str, list[Any]] = defaultdict(list)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.submissions: list[dict[str, Any]] = []
        self.uploads: dict[str, bytearray] = {}
        self.expected: dict[str, int] = {}
        self.pushed: list[dict[str, Any]] = []
        self.states: list[str] = ["QUEUED", "RUNNING", "COMPLETE"]
        self.outcomes: list[str] = ["PENDING", "COMPLETE"]
        self.failure, self.error, self.listed_after = "", "", 0
        self.files: dict[str, bytes] = {}
        self.log = ""
        self.allowed, self.today = 5, 0
        self.invalid: dict[str, list[str]] = {}
        self.token_lives = True
        self.server = Server(type("Bound", (_Handler,), {"fake": self}))
        self.url, self.close = self.server.url, self.server.close

    def count(self, name: str) -> int:
        return sum(called == name for called, _ in self.calls)

    # What each call does; a method has the call's name.

    def IntrospectToken(self, body: dict[str, Any]) -> Any:
        return {"active": True, "username": USER} if self.token_lives and body["token"] == TOKEN else {"active": False}

    def SaveKernel(self, body: dict[str, Any]) -> Any:
        self.pushed.append(body)
        slug = body["slug"]
        url = f"https://www.kaggle.com/code/{slug}"
        return {"ref": f"/code/{slug}", "url": url, "versionNumber": len(self.pushed), **self.invalid}

    def GetKernelSessionStatus(self, body: dict[str, Any]) -> Any:
        if not self.pushed or not re.fullmatch(r"v\d+", body.get("versionLabel", "v1")):
            return 404, "no such kernel"
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return {"status": state, "failureMessage": self.failure}

    def ListKernelSessionOutput(self, body: dict[str, Any]) -> Any:
        start, size = int(body.get("pageToken") or 0), 2  # small pages, so that there are several
        names = sorted(self.files)
        page = [{"fileName": name, "url": f"{self.url}/files/{name}"} for name in names[start : start + size]]
        next_page = {"nextPageToken": str(start + size)} if start + size < len(names) else {}
        return {"files": page, "log": self.log, **next_page}

    def GetSubmissionLimits(self, body: dict[str, Any]) -> Any:
        return {"numToday": self.today, "numAllowedNow": self.allowed}

    def StartSubmissionUpload(self, body: dict[str, Any]) -> Any:
        token = f"blob-{len(self.uploads)}"
        self.uploads[token], self.expected[token] = bytearray(), int(body["contentLength"])
        return {"token": token, "createUrl": f"{self.url}/upload/{token}"}

    def CreateSubmission(self, body: dict[str, Any]) -> Any:
        token = body["blobFileTokens"]
        if len(self.uploads[token]) != self.expected[token]:
            return 400, "the upload is not complete"
        if not self.allowed:
            return 400, "Submission not allowed: your team has used its daily submission allowance (5) today"
        self.allowed, self.today = self.allowed - 1, self.today + 1
        ref = 1000 + len(self.submissions)
        self.submissions.insert(
            0,
            {
                "ref": ref,
                "description": body["submissionDescription"],
                "fileName": "submission.zip",
                "status": "PENDING",
            },
        )
        return {"message": "Successfully submitted", "ref": ref}

    def ListSubmissions(self, body: dict[str, Any]) -> Any:
        if self.listed_after:
            self.listed_after -= 1
            return {"submissions": []}
        size, page = int(body.get("pageSize", 20)), int(body.get("page", 1))
        if self.submissions and self.submissions[0]["status"] == "PENDING":
            state = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
            self.submissions[0]["status"] = state
            if state == "COMPLETE":
                self.submissions[0]["publicScore"] = "0.86"
            if state == "ERROR":
                self.submissions[0]["errorDescription"] = self.error
        return {"submissions": self.submissions[(page - 1) * size : page * size]}


class _Handler(BaseHTTPRequestHandler):
    fake: FakeKaggle
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        match = re.fullmatch(r"/v1/[a-z]+\.[A-Za-z]+/([A-Za-z]+)", self.path)
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        name = match[1] if match else self.path
        self.fake.calls.append((name, body))
        if self.headers.get("Authorization") not in (BASIC, f"Bearer {TOKEN}"):
            return self.answer(401, {"code": 401, "message": f"Unauthenticated: {self.headers.get('Authorization')}"})
        fault = self.fake.faults[name].pop(0) if self.fake.faults[name] else None
        if fault == "cut":
            return self.cut()
        if fault == "slow":
            return self.wait_for_the_client_to_hang_up()
        if fault == "html":
            return self.answer(200, b"<html>busy</html>", {"Content-Type": "text/html"})
        if isinstance(fault, int | tuple):
            status, headers, *text = fault if isinstance(fault, tuple) else (fault, {})
            said = text[0] if text else {"code": status, "message": f"the server says {status}"}
            return self.answer(status, said, headers)
        if isinstance(fault, bytes):
            getattr(self.fake, name)(body)
            return self.answer(200, fault)
        if isinstance(fault, str) and fault.startswith("redirect"):
            getattr(self.fake, name)(body)
            return self.redirect(fault)
        if fault == "late":
            self.cut()
            time.sleep(0.2)
        result = getattr(self.fake, name)(body)
        if fault in ("cut after", "late"):
            return self.cut()
        if isinstance(result, tuple):
            return self.answer(result[0], {"code": result[0], "message": result[1]})
        return self.answer(200, result, half=fault == "half")

    def do_PUT(self) -> None:
        if self.path == "/foreign":
            return self.do_GET()
        token = self.path.rsplit("/", 1)[-1]
        self.fake.calls.append(("upload", dict(self.headers)))
        received, size = self.fake.uploads[token], self.fake.expected[token]
        span = re.fullmatch(r"bytes (?:\*|(\d+)-\d+)/\d+", self.headers.get("Content-Range", ""))
        if span and span[1] is None:  # the client asks how much has arrived
            if self.fake.faults["resume"]:
                return self.redirect(self.fake.faults["resume"].pop(0))
            if len(received) == size:
                return self.answer(200, {})
            return self.answer(308, b"", {"Range": f"bytes=0-{len(received) - 1}"} if received else {})
        fault = self.fake.faults["upload"].pop(0) if self.fake.faults["upload"] else None
        length = int(self.headers.get("Content-Length") or 0)
        del received[int(span[1]) if span else 0 :]
        if fault == "slow":
            return self.wait_for_the_client_to_hang_up()
        if fault == "cut":
            received += self.rfile.read(length // 2)
            return self.cut()
        if isinstance(fault, int):
            self.rfile.read(length)
            return self.answer(fault, {})
        if isinstance(fault, str):
            self.rfile.read(length)
            return self.redirect(fault)
        received += self.rfile.read(length)
        return self.answer(200, {})

    def do_GET(self) -> None:
        if self.path == "/foreign":
            self.fake.calls.append(("foreign", {}))
            self.answer(200, FOREIGN)
            return
        name = self.path.removeprefix("/files/")
        self.fake.calls.append(("file", {"name": name}))
        data = self.fake.files[name]
        self.answer(
            200, data, {"Last-Modified": "Wed, 26 Nov 2025 00:00:00 GMT", "Content-Type": "application/octet-stream"}
        )

    def redirect(self, fault: str) -> None:
        """Answer with the redirect `redirect PLACE` or `redirect PLACE STATUS`."""
        _, place, *status = fault.split()
        places = {
            "dead": "http://127.0.0.1:9", "foreign": f"{self.fake.url}/foreign", "loop": f"{self.fake.url}{self.path}",
            "plain": f"http://localhost:{self.fake.server.server_port}/foreign",
        }  # fmt: skip
        self.answer(int(status[0]) if status else 302, {}, {"Location": places[place]})

    def answer(self, status: int, body: Any, headers: dict[str, str] | None = None, half: bool = False) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if half else data)
        if half:
            self.cut()

    def wait_for_the_client_to_hang_up(self) -> None:
        self.close_connection = True
        while self.connection.recv(1 << 16):
            pass

    def cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):  # it may be cut already
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        pass
