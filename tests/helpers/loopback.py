"""A server on loopback for tests: silent about clients that are gone, loud about its own faults."""

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """It serves as soon as it is made. What goes wrong in a handler is raised by `close`, and never printed.

    A client may hang up at any time, also while the server waits for its next request. Python's own server then prints
    a traceback, which ends up in the output of whichever test runs.

    Attributes:
        url: where it listens.
    """

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.errors: list[BaseException] = []
        # The default of half a second between looks is what closing the server would wait for, in every test.
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exception()
        if not isinstance(error, ConnectionError):
            self.errors.append(error)

    def close(self) -> None:
        """Stop the server.

        Raises:
            Exception: the first that a handler raised.
        """
        self.shutdown()
        self.server_close()
        if self.errors:
            raise self.errors[0]
