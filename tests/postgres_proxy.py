"""A way to a Postgres server that is cut at the worst moment."""

import contextlib
import select
import socket
import threading

COMMIT = b"COMMIT\x00"


class Proxy:
    """Passes everything on, until the next COMMIT is to be lost."""

    def __init__(self, port: int):
        self.server, self.next = ("127.0.0.1", port), ""
        self.cuts: list[str] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.kept: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, when: str) -> None:
        """Lose the next commit: `before` it reaches the server, `after` it did, or `hang`: the server is not told."""
        self.next = when

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed at the end of the test
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection(self.server)
        with contextlib.suppress(OSError):  # either side may end at any time
            self._pass_on(client, server)
        client.close()
        if server not in self.kept:
            server.close()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        while True:
            for source in select.select([client, server], [], [])[0]:
                data = source.recv(65536)
                if not data:
                    return
                if source is client and self.next and COMMIT in data:
                    self._lose(server, data)
                    return
                (server if source is client else client).sendall(data)

    def _lose(self, server: socket.socket, data: bytes) -> None:
        when, self.next = self.next, ""
        self.cuts.append(when)
        if when == "after":
            server.sendall(data)
            server.recv(65536)  # it has answered, and nobody is told
        if when == "hang":
            self.kept.append(server)

    def close(self) -> None:
        """Let nobody else in."""
        with contextlib.suppress(OSError):  # it may be closed already
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
