"""A load generator: raw HTTP/1.1 over connections that are kept, at a rate or as fast as answers come."""

import asyncio
import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field

import uvloop

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


@dataclass
class Report:
    """What a load saw."""

    statuses: Counter = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)  # of answers with 200, in seconds, since they were due
    lost: list[str] = field(default_factory=list)  # requests that were sent and not answered
    refused: int = 0  # connections that could not be opened
    without_retry: int = 0  # answers with 429 or 503 that do not say when to come back
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Good answers in a second."""
        return self.statuses[200] / self.seconds

    def quantile(self, share: float) -> float:
        """A quantile of the latencies, in seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")

    def summary(self) -> dict:
        """The report as a document."""
        statuses = {str(status): count for status, count in sorted(self.statuses.items())}
        times = {f"p{share * 100:g}_ms": round(self.quantile(share) * 1e3, 2) for share in (0.5, 0.99, 0.999)}
        rate = {"per_second": round(self.rate, 1), "seconds": round(self.seconds, 1)}
        return {**rate, **times, "statuses": statuses, "lost": len(self.lost), "refused": self.refused}


def request_of(body: object, path: str = "/predict") -> bytes:
    """The bytes of a request."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: load\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


class Client(asyncio.Protocol):
    """One connection that sends one request after another."""

    def __init__(self, load: "Load", due: float, pause: float):
        self.load, self.due, self.pause = load, due, pause
        self.waiting, self.buffer, self.closed = False, b"", asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.send_when_due()

    def send_when_due(self) -> None:
        wait = self.due - time.perf_counter()
        if wait > 0.0005:
            asyncio.get_running_loop().call_later(wait, self.send)
        else:
            self.send()

    def send(self) -> None:
        if self.transport.is_closing():
            return
        if time.perf_counter() > self.load.end:
            self.transport.close()
            return
        request = self.load.next_request()
        if request is None:
            self.load.end = 0.0
            self.transport.close()
            return
        self.began, self.waiting = self.due if self.pause else time.perf_counter(), True
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found or len(rest) < int((LENGTH.search(head) or [0, 0])[1]):
            return
        self.buffer, self.waiting = b"", False
        self.load.answered(int(head[9:12]), head, time.perf_counter() - self.began)
        self.due += self.pause
        if b"connection: close" in head:
            self.transport.close()
        else:
            self.send_when_due()

    def connection_lost(self, error: Exception | None) -> None:
        if self.waiting:
            self.load.report.lost.append(repr(error))
        self.closed.set_result(None)


class Load:
    """A number of connections that send the same request until a time is over."""

    def __init__(self, port: int, request: bytes, connections: int, rate: float | None, seconds: float):
        self.port, self.connections, self.seconds = port, connections, seconds
        self.pause = connections / rate if rate else 0.0
        self.next_request = lambda: request
        self.report = Report()

    def answered(self, status: int, head: bytes, seconds: float) -> None:
        self.report.statuses[status] += 1
        if status == 200:
            self.report.latencies.append(seconds)
        elif status in (429, 503) and b"retry-after" not in head.lower():
            self.report.without_retry += 1

    async def client(self, number: int) -> None:
        """One connection after another, since a server may close them."""
        due = time.perf_counter() + self.pause * number / self.connections
        while time.perf_counter() < self.end:
            try:
                _, client = await asyncio.get_running_loop().create_connection(
                    lambda due=due: Client(self, due, self.pause), "127.0.0.1", self.port
                )
            except OSError:
                self.report.refused += 1
                await asyncio.sleep(0.1)
                due = max(due, time.perf_counter()) if self.pause else time.perf_counter()
                continue
            await client.closed
            due = max(client.due, time.perf_counter()) if client.waiting else client.due

    def go(self) -> Report:
        """Send until the time is over, in a loop of its own."""
        return uvloop.run(self.run())

    async def run(self) -> Report:
        """Send until the time is over."""
        began = time.perf_counter()
        self.end = began + self.seconds
        await asyncio.wait(
            [asyncio.create_task(self.client(number)) for number in range(self.connections)], timeout=self.seconds + 30
        )
        self.report.seconds = time.perf_counter() - began
        return self.report


def load(port: int, body: object, seconds: float, connections: int = 16, rate: float | None = None) -> Report:
    """Send a request again and again; without a rate each connection sends when it was answered."""
    return Load(port, request_of(body), connections, rate, seconds).go()
