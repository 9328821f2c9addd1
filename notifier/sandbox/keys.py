"""The keys of the vendors this process plays: made once in `tls_dir`, read by whoever configures accounts.

| file                      | whose it is                                                            |
|---------------------------|------------------------------------------------------------------------|
| ca.pem                    | trust this to reach the TLS ports                                      |
| apns.p8                   | the provider token key; key id SANDBOXKEY, team id SANDBOXTEAM         |
| fcm-service-account.json  | a service account whose token_uri is this process                      |
| sendgrid-public.txt       | verifies signed events (base64 SPKI, as the vendor shows it)           |
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

APNS_KEY_ID = "SANDBOXKEY"
APNS_TEAM_ID = "SANDBOXTEAM"
FCM_PROJECT = "notifier-sandbox"
FCM_ACCOUNT = f"sender@{FCM_PROJECT}.iam.gserviceaccount.com"
TWILIO_ACCOUNT_SID = "AC" + "0" * 32
TWILIO_AUTH_TOKEN = "sandbox-auth-token"  # public by design: it opens nothing but this process
SENDGRID_KEY_END = "sandbox"
JPUSH_APP_KEY = "5a0db0c5" + "0" * 16
JPUSH_MASTER_SECRET = "sandbox-master-secret"  # as above
PUSHY_API_KEY = "sandbox-pushy-key"  # as above
SMTP_PASSWORD = "sandbox"  # as above

_VALID_FOR = timedelta(days=3650)
_RENEW_BEFORE = timedelta(days=30)

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Keys:
    tls: ssl.SSLContext
    apns_public: ec.EllipticCurvePublicKey
    fcm_private: rsa.RSAPrivateKey
    fcm_key_id: str
    token_secret: bytes
    sendgrid_private: ec.EllipticCurvePrivateKey


def load_keys(directory: Path, *, host: str) -> Keys:
    """Read the keys, making what is not there yet. A certificate that ends soon or misses `host` is renewed."""
    directory.mkdir(parents=True, exist_ok=True)
    certificate, key = _server_certificate(directory, host)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.load_cert_chain(certificate, key)
    apns = _ec_key(directory / "apns.p8")
    sendgrid = _ec_key(directory / "sendgrid-private.pem")
    spki = sendgrid.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _write(directory / "sendgrid-public.txt", base64.b64encode(spki) + b"\n", mode=0o644)
    fcm = _rsa_key(directory / "fcm-private.pem")
    secret = directory / "token-secret"
    if not secret.exists():
        _write(secret, secrets.token_hex(32).encode())
    return Keys(
        tls=tls,
        apns_public=apns.public_key(),
        fcm_private=fcm,
        fcm_key_id=_fingerprint(fcm),
        token_secret=secret.read_bytes(),
        sendgrid_private=sendgrid,
    )


def write_service_account(directory: Path, keys: Keys, *, token_uri: str) -> None:
    """The JSON file that the vendor's console would let one download."""
    pem = keys.fcm_private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {
        "type": "service_account",
        "project_id": FCM_PROJECT,
        "private_key_id": keys.fcm_key_id,
        "private_key": pem.decode(),
        "client_email": FCM_ACCOUNT,
        "client_id": "100000000000000000000",
        "auth_uri": "https://accounts.google.com/o/oauth2/auth",
        "token_uri": token_uri,
        "universe_domain": "googleapis.com",
    }
    _write(directory / "fcm-service-account.json", json.dumps(account, indent=2).encode())


def _write(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """All at once, so that a reader never sees half a key."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(content)
    draft.replace(path)


def _pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _ec_key(path: Path) -> ec.EllipticCurvePrivateKey:
    if not path.exists():
        _write(path, _pem(ec.generate_private_key(ec.SECP256R1())))
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{path} does not hold an elliptic curve key; remove it, and a new one is made")
    return key


def _rsa_key(path: Path) -> rsa.RSAPrivateKey:
    if not path.exists():
        _write(path, _pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)))
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise TypeError(f"{path} does not hold an RSA key; remove it, and a new one is made")
    return key


def _fingerprint(key: rsa.RSAPrivateKey) -> str:
    digest = hashes.Hash(hashes.SHA1())  # noqa: S303 - a name for the key, as the vendor gives one; no security in it
    digest.update(
        key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return digest.finalize().hex()


def _server_certificate(directory: Path, host: str) -> tuple[Path, Path]:
    certificate, key = directory / "server.pem", directory / "server-key.pem"
    if not (directory / "ca.pem").exists() or not _still_good(certificate, key, host):
        ca_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Notifier sandbox CA")])
        ca = _certificate(ca_name, ca_name, ca_key.public_key(), ca_key, names=None)
        server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Notifier sandbox")])
        server = _certificate(server_name, ca_name, server_key.public_key(), ca_key, names=_names(host))
        _write(key, _pem(server_key))
        _write(certificate, server.public_bytes(serialization.Encoding.PEM))
        _write(directory / "ca.pem", ca.public_bytes(serialization.Encoding.PEM), mode=0o644)
    return certificate, key


def _still_good(certificate: Path, key: Path, host: str) -> bool:
    if not certificate.exists() or not key.exists():
        return False
    known = x509.load_pem_x509_certificate(certificate.read_bytes())
    names = known.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    in_time = known.not_valid_after_utc - datetime.now(UTC) > _RENEW_BEFORE
    return in_time and all(name in names for name in _names(host))


def _names(host: str) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.DNSName("localhost"), x509.DNSName("sandbox")]
    for address in dict.fromkeys(("127.0.0.1", "::1", host)):
        try:
            names.append(x509.IPAddress(ip_address(address)))
        except ValueError:
            names.append(x509.DNSName(address))
    return list(dict.fromkeys(names))


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePrivateKey,
    *,
    names: list[x509.GeneralName] | None,
) -> x509.Certificate:
    """`names` None: a certificate authority, which may sign nothing but servers' certificates."""
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + _VALID_FOR)
        .add_extension(x509.BasicConstraints(ca=names is None, path_length=0 if names is None else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=names is not None,
                key_cert_sign=names is None,
                crl_sign=names is None,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False).add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
    return builder.sign(signer, hashes.SHA256())
