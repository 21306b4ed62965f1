"""A service that behaves as told, one word for each attempt: what a network and a busy server do to a client."""

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Unsteady(BaseHTTPRequestHandler):
    """Doubles `x`; each attempt takes the next word of `script` and is fine when none is left."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and content leave together
    script: ClassVar[list[str]]
    seen: ClassVar[list[dict[str, Any]]]
    connections: ClassVar[set[tuple[str, int]]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.connections.add(self.client_address)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.seen.append({"at": time.monotonic(), "path": self.path, "body": body, **headers})
        word, _, detail = (self.script.pop(0) if self.script else "fine").partition(" ")
        is_stream = headers["content-type"] == "application/vnd.apache.arrow.stream"
        sent = pa.ipc.open_stream(body).read_all().to_pylist() if is_stream else json.loads(body)
        getattr(self, f"do_{word}")(detail, sent)

    def do_drop(self, detail: str, sent: Any) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def do_half(self, detail: str, sent: Any) -> None:
        self.send_response(200)
        self.send_header("content-length", "1000")
        self.end_headers()
        self.wfile.write(b'{"prediction"')
        self.do_drop(detail, sent)

    def do_slow(self, detail: str, sent: Any) -> None:
        time.sleep(float(detail))
        with contextlib.suppress(OSError):
            self.do_fine(detail, sent)

    def do_refuse(self, detail: str, sent: Any) -> None:
        status, _, after = detail.partition(" ")
        self.answer(int(status), {"detail": "Not now."}, {"retry-after": after} if after else {})

    def do_fine(self, detail: str, sent: Any) -> None:
        who = {"model": "twice", "version": 7, "arm": "champion", "request_id": self.headers["x-request-id"]}
        if isinstance(sent, dict):
            return self.answer(200, {"prediction": 2 * sent["x"], **who}, {})
        return self.answer(200, {"predictions": [{"prediction": 2 * one["x"]} for one in sent], **who}, {})

    def answer(self, status: int, document: Any, headers: dict[str, str]) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@contextlib.contextmanager
def unsteady(*script: str, tls: tuple[Path, Path] | None = None) -> Iterator[tuple[str, type[Unsteady]]]:
    """Run the service; its address, and its class with what it saw."""
    handler = type("Scripted", (Unsteady,), {"script": list(script), "seen": [], "connections": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        server.server_close()


def certificates(folder: Path) -> tuple[Path, tuple[Path, Path]]:
    """An authority of one's own, and a certificate of it for 127.0.0.1 with its key."""
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority of one's own")])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    root = _certificate(own, own, authority.public_key()).add_extension(x509.BasicConstraints(True, None), True)
    root = root.add_extension(usage, True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(authority.public_key())
    root = root.add_extension(identifier, False)
    leaf = _certificate(name, own, key.public_key()).add_extension(address, False)
    leaf = leaf.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), False)
    paths = folder / "ca.pem", folder / "server.pem", folder / "server.key"
    paths[0].write_bytes(root.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(leaf.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[2].write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
    return paths[0], (paths[1], paths[2])


def _certificate(subject: x509.Name, issuer: x509.Name, key: Any) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    now = datetime.now(UTC)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
