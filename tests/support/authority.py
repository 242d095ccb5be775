"""Certificates and tokens for tests: a certificate authority, and an issuer of JWTs with a key set of its own."""

import hashlib
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import jwt
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm

ISSUER = "https://issuer.test"
AUDIENCE = "recurra"


class Authority:
    """Signs certificates, and keeps a server's in a folder.

    Attributes:
        cert, key, ca: Files of the server.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._ca = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self.cert, self.key, self.ca = (folder / name for name in ("cert.pem", "key.pem", "ca.pem"))
        self.ca.write_bytes(self._ca.cert_pem.bytes())
        self.renew()

    def renew(self) -> int:
        """Give the server a new certificate; return its serial number."""
        leaf = self._ca.issue_cert("localhost", "127.0.0.1", key_type=trustme.KeyType.ECDSA)
        self.key.write_bytes(leaf.private_key_pem.bytes())
        chain = leaf.cert_chain_pems[0].bytes()
        self.cert.write_bytes(chain)
        return x509.load_pem_x509_certificate(chain).serial_number

    def flags(self) -> tuple[str, ...]:
        """For `recurra serve`."""
        return "--tls-cert", str(self.cert), "--tls-key", str(self.key)

    def client(self, name: str, *, lives: float | None = None) -> "ClientCertificate":
        """A certificate for a client with this common name, for years or for so many seconds (or up to one less)."""
        until = None if lives is None else datetime.now(UTC) + timedelta(seconds=lives)
        leaf = self._ca.issue_cert("client.test", common_name=name, not_after=until, key_type=trustme.KeyType.ECDSA)
        chain, key = leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes()
        return ClientCertificate(name, self.ca.read_bytes(), chain, key)

    def credentials(self) -> grpc.ChannelCredentials:
        """For a client without a certificate."""
        return grpc.ssl_channel_credentials(self.ca.read_bytes())


class ClientCertificate:
    """A client's certificate.

    Attributes:
        thumbprint: As a JWT names it that is bound to it (RFC 8705).
        peer: What gRPC tells of whoever shows it.
    """

    def __init__(self, name: str, ca: bytes, chain: bytes, key: bytes) -> None:
        self.ca, self.chain, self.key = ca, chain, key
        self.peer = {"x509_common_name": [name.encode()], "x509_pem_cert": [chain]}
        self.thumbprint = jwt.utils.base64url_encode(
            x509.load_pem_x509_certificate(chain).fingerprint(SHA256())
        ).decode()

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel."""
        return grpc.ssl_channel_credentials(self.ca, self.key, self.chain)


class Issuer:
    """Issues JWTs, signed with keys that it can change.

    Attributes:
        jwks: The file with its public keys.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.jwks = folder / "jwks.json"
        self.public: dict[str, Any] = {}
        self.rotate()

    def rotate(self) -> None:
        """Sign with a new key from now on, and publish no other."""
        self._key: EllipticCurvePrivateKey = generate_private_key(SECP256R1())
        public: dict[str, Any] = json.loads(ECAlgorithm.to_jwk(self._key.public_key()))
        pem = self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self.key_id = hashlib.sha256(pem).hexdigest()[:16]
        self.public = {**public, "kid": self.key_id, "alg": "ES256", "use": "sig"}
        self.public_pem = pem
        self.publish()

    def publish(self) -> None:
        """Write the key set."""
        self.jwks.write_text(json.dumps({"keys": [self.public]}))

    def token(self, subject: str = "ann", *, lives: float = 300.0, key: Any = None, **claims: Any) -> str:
        """A token; claims that are None are left out."""
        now = time.time()
        all_claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": subject,
            "iat": int(now),
            "exp": now + lives,
            "roles": ["predict"],
            **claims,
        }
        all_claims = {name: value for name, value in all_claims.items() if value is not None}
        return jwt.encode(all_claims, key or self._key, "ES256", headers={"kid": self.key_id})

    def signed(self, header: bytes, claims: bytes) -> str:
        """What looks like a token of these, whatever they are; the signature is good."""
        signed = b".".join(map(jwt.utils.base64url_encode, (header, claims)))
        signature = ECAlgorithm(ECAlgorithm.SHA256).sign(signed, self._key)
        return b".".join((signed, jwt.utils.base64url_encode(signature))).decode()


def write_access_file(path: Path, issuer: Issuer, **more: Any) -> None:
    """An access file with one of each kind; JSON is YAML."""

    def entry(name: str, *roles: str) -> dict[str, Any]:
        return {"name": name, "sha256": hashlib.sha256(TOKENS[name].encode()).hexdigest(), "roles": roles}

    policy = {
        "tokens": [
            entry("alice", "predict"),
            entry("bob", "predict"),
            entry("olga", "predict", "operate"),
            entry("max", "metrics"),
        ],
        "certificates": [{"name": "gateway", "roles": ["predict"]}],
        "jwt": {"issuer": ISSUER, "audience": AUDIENCE, "jwks": str(issuer.jwks), "leeway": 0},
        **more,
    }
    fresh = path.with_suffix(".new")  # so that it is never seen half written
    fresh.write_text(json.dumps(policy))
    fresh.replace(path)


TOKENS = {name: f"{name}-0123456789abcdef0123456789" for name in ("alice", "bob", "olga", "max")}
