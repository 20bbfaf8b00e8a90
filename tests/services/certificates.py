"""Owns certificates made for a test: an authority, and what it signs for servers of this machine and for clients."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True)
class Certificate:
    """PEM text, and files with it: the key's can be read by its owner only."""

    certificate: str
    key: str
    certfile: Path
    keyfile: Path


class Authority:
    """Signs certificates, which are written to `folder`; its own is in `cafile`."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.BasicConstraints(ca=True, path_length=0)
        signed = self._builder(self._name, self._key.public_key()).add_extension(usage, True)
        self.pem = signed.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
        self.cafile = folder / f"{name}.pem"
        self.cafile.write_text(self.pem)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key)
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))

    def issue(self, name: str) -> Certificate:
        """For a client of that name, or a server at 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
        here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        signed = self._builder(subject, key.public_key()).add_extension(usages, False).add_extension(here, False)
        certificate = signed.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
        plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        pem = key.private_bytes(serialization.Encoding.PEM, *plain).decode()
        certfile, keyfile = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        certfile.write_text(certificate)
        keyfile.touch(mode=0o600)
        keyfile.write_text(pem)
        return Certificate(certificate, pem, certfile, keyfile)

    def server_context(self, certificate: Certificate) -> ssl.SSLContext:
        """For a server that lets in only who shows a certificate of this authority."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.cafile)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(certificate.certfile, certificate.keyfile)
        return context
