"""An OIDC issuer, certificates, and a project whose service asks everybody who it is."""

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jwt
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

from mlops_nb.core.settings import load_settings
from mlops_nb.serve.events import ServingEvents, events_path
from mlops_nb.serve.keys import KeyRing, keys_path

MAKERS = {
    "RS256": lambda kid: RSAKey.generate_key(2048, {"kid": kid}),
    "ES256": lambda kid: ECKey.generate_key("P-256", {"kid": kid}),
    "EdDSA": lambda kid: OKPKey.generate_key("Ed25519", {"kid": kid}),
}
AUDIENCE = "churn"


class Issuer:
    """A real issuer: discovery, keys, tokens; its keys change when it is told to."""

    def __init__(self):
        self.keys: dict[tuple[str, str], Key] = {}
        self.asked = 0
        self.latest = {algorithm: self.rotate(algorithm, algorithm.lower()) for algorithm in MAKERS}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.claims = {"iss": self.address, "aud": AUDIENCE, "sub": "mia", "scope": "predict"}
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def _handler(issuer):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                issuer.asked += 1
                documents = {
                    "/.well-known/openid-configuration": {
                        "issuer": issuer.address,
                        "jwks_uri": f"{issuer.address}/keys",
                    },
                    "/keys": {"keys": [key.as_dict(private=False) for key in issuer.keys.values()]},
                }
                self.send_response(200 if self.path in documents else 404)
                self.end_headers()
                self.wfile.write(json.dumps(documents.get(self.path, {})).encode())

            def log_message(self, *args):
                issuer.last = args

        return Handler

    def rotate(self, algorithm: str, kid: str) -> str:
        """Sign with a new key from now on, beside the others."""
        self.keys[algorithm, kid] = MAKERS[algorithm](kid)
        return kid

    def token(self, algorithm: str = "ES256", header: dict | None = None, key: Key | None = None, **claims) -> str:
        """A token; a claim that is None is left out."""
        head = {"alg": algorithm, "kid": self.latest.get(algorithm, ""), **(header or {})}
        said = {"exp": int(time.time()) + 300, **self.claims, **claims}
        said = {name: value for name, value in said.items() if value is not None}
        key = key or self.keys[algorithm, head["kid"]]
        return jwt.encode({k: v for k, v in head.items() if v is not None}, said, key, algorithms=[algorithm])

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def certificate(folder: Path, host: str = "127.0.0.1") -> tuple[Path, Path]:
    """A certificate that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    paths = folder / "server.pem", folder / "server.key"
    paths[0].write_bytes(made.public_bytes(pem))
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(pem, form, plain))
    return paths


def ring_of(project: Path) -> KeyRing:
    """The keys of a project, for whoever makes and revokes them."""
    settings = load_settings(project, {})
    return KeyRing(keys_path(settings), ServingEvents(events_path(settings)), "tester")
