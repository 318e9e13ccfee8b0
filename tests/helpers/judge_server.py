"""A judge on loopback that speaks OpenAI's protocol, well or badly."""

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.helpers.loopback import Server

Prefers = Callable[[str, str, str], int]  # from request and two answers: the ranking, 1 to 6


def read_question(text: str) -> tuple[str, str, str, str]:
    """(code, request, answer 1, answer 2) of what a judge is asked."""
    code = re.search(r"<request ([0-9a-f]+)>", text)[1]
    parts = [re.search(rf"<{name} {code}>\n(.*?)\n</{name} {code}>", text, re.S)[1] for name in NAMES]
    return code, *parts


NAMES = ("request", "answer_1", "answer_2")


def write_verdict(code: str, ranking: int) -> str:
    return json.dumps({"code": code, "score_1": 3, "score_2": 3, "ranking": ranking})


class JudgeServer:
    """The server and what it was asked.

    Attributes:
        prefers: decides; by default the first answer is much better.
        faults: what the next requests get instead of a verdict: functions of the handler.
        asked: the bodies of the requests for a verdict. `keys`: their header Authorization. `paths`: of all requests.
        most: the largest number of requests that were open at a time.
    """

    def __init__(self, prefers: Prefers = lambda *texts: 1, models: tuple[str, ...] = ("judge-7b",)) -> None:
        self.prefers, self.models = prefers, models
        self.faults: list[Callable[[BaseHTTPRequestHandler], None]] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.paths: list[str] = []
        self.open = self.most = 0
        lock, judge = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                judge.paths.append(self.path)
                send(self, 200, {"data": [{"id": name} for name in judge.models]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    judge.open += 1
                    judge.most = max(judge.most, judge.open)
                    judge.paths.append(self.path)
                    judge.asked.append(body)
                    judge.keys.append(self.headers["Authorization"])
                    fault = judge.faults.pop(0) if judge.faults else None
                try:
                    if fault:
                        fault(self)
                        return
                    code, *texts = read_question(body["messages"][0]["content"])
                    say(write_verdict(code, judge.prefers(*texts)))(self)
                finally:
                    with lock:
                        judge.open -= 1

            def log_message(self, *words: object) -> None:
                pass

        self.server = Server(Handler)
        self.url = f"{self.server.url}/v1"

    def close(self) -> None:
        """Stop; raises what went wrong in the handler."""
        self.server.close()


def send(handler: BaseHTTPRequestHandler, status: int, body: Any = None, **headers: str) -> None:
    """Answer with a status, and with JSON or with bytes as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def say(text: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """What the judge writes."""
    return lambda handler: send(handler, 200, {"choices": [{"message": {"role": "assistant", "content": text}}]})


def fail(status: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: send(handler, status, {"error": "no"}, **headers)


def write_raw(data: bytes, announced: int | None = None) -> Callable[[BaseHTTPRequestHandler], None]:
    """Send bytes as the body, with another Content-Length than their number if one is `announced`."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data) if announced is None else announced))
        handler.end_headers()
        handler.wfile.write(data)
        handler.close_connection = True

    return answer
