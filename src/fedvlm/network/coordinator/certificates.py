"""Certificates and node keys for trying a federation over TLS. For real ones use your own authority.

Needs the package `cryptography`, which Flower brings.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fedvlm import durable
from fedvlm.errors import FedvlmError

DAYS = 30
"""Days for which certificates for trying are valid."""
USAGE = {
    "digital_signature": True, "content_commitment": False, "key_encipherment": False, "data_encipherment": False,
    "key_agreement": False, "key_cert_sign": True, "crl_sign": True, "encipher_only": False, "decipher_only": False,
}  # fmt: skip
"""What the authority's key may be used for."""


def write(folder: Path, sites: Sequence[str], hosts: Sequence[str] = ("127.0.0.1", "localhost")) -> list[Path]:
    """Write `ca.crt`; `server.pem` and `server.key` for these hosts; `SITE.key` and `SITE.pub` for each site."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ImportError:
        raise FedvlmError("certificates for trying need Flower's packages: pip install 'fedvlm[federation]'") from None
    now = datetime.now(UTC)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def certificate(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        made = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer))
        made = made.public_key(key.public_key()).serial_number(x509.random_serial_number())
        # A clock that is a day behind must not refuse a new certificate.
        return made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=DAYS))

    def private(key: ec.EllipticCurvePrivateKey, style: serialization.PrivateFormat) -> bytes:
        return key.private_bytes(serialization.Encoding.PEM, style, serialization.NoEncryption())

    own = ec.generate_private_key(ec.SECP384R1())
    authority = certificate("fedvlm trial authority", "fedvlm trial authority", own)
    authority = authority.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    root = authority.add_extension(x509.KeyUsage(**USAGE), critical=True).sign(own, hashes.SHA256())
    key = ec.generate_private_key(ec.SECP384R1())
    names = [x509.IPAddress(ip) if (ip := _address(host)) else x509.DNSName(host) for host in hosts]
    server = certificate(hosts[0], "fedvlm trial authority", key)
    signed = server.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(own, hashes.SHA256())
    traditional = serialization.PrivateFormat.TraditionalOpenSSL
    files = {
        "ca.crt": (root.public_bytes(serialization.Encoding.PEM), False),
        "server.pem": (signed.public_bytes(serialization.Encoding.PEM), False),
        "server.key": (private(key, traditional), True),
    }
    for site in sites:
        node = ec.generate_private_key(ec.SECP384R1())
        public = node.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        files[f"{site}.key"] = private(node, serialization.PrivateFormat.OpenSSH), True
        files[f"{site}.pub"] = public + b"\n", False
    for file, (data, secret) in files.items():
        durable.write_bytes(folder / file, data, private=secret)
    return [folder / file for file in files]


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The host as an address; None if it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
