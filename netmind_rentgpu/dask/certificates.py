"""The certificates of one cluster, made in memory: an authority, a certificate for this machine, and one for all workers.

Dask has no roles: it accepts each peer whose certificate the cluster's authority has signed, and compares no names. Each
peer may run code in every process of the cluster, the scheduler on this machine included. So a certificate for each worker
would keep no worker from acting as another one. With one for all workers, everything is signed at once, and the authority's
key is dropped before any worker starts: no later peer can get a certificate.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from distributed.security import Security

__all__ = ["ClusterCertificates", "make_certificates", "worker_options"]

# The clocks of machines differ: certificates are valid somewhat earlier, and longer, than the cluster lives.
_EARLIER: Final = timedelta(minutes=10)
_LONGER: Final = timedelta(hours=1)
_LOOPBACK: Final = "127.0.0.1"


@attrs.frozen(kw_only=True)
class ClusterCertificates:
    """The certificates and private keys of one cluster. They are not in Dask's configuration.

    Open connections outlive the end of the certificates, and new ones are refused.

    Dask loads a key from a temporary file, which only this user can read, and removes it at once. There is no other file.

    Attributes:
        security: for the scheduler and the client on this machine.
        worker: the keyword arguments of `distributed.Security` for a worker and its nanny. They are plain values that JSON
            can carry, and hold a private key.
    """

    security: Security = attrs.field(repr=False)
    worker: Mapping[str, bool | str] = attrs.field(repr=False)


def make_certificates(lifetime: timedelta) -> ClusterCertificates:
    """Make the certificates of a new cluster.

    Args:
        lifetime: the longest time for which the cluster will run.
    """
    from distributed.security import Security

    authority = _Authority(lifetime)
    certificate, key = authority.issue("scheduler and client")
    worker_certificate, worker_key = authority.issue("worker")
    # Each field is given, because Dask's configuration fills in those that are not.
    security = Security(
        require_encryption=True,
        tls_ca_file=authority.certificate,
        tls_scheduler_cert=certificate,
        tls_scheduler_key=key,
        tls_client_cert=certificate,
        tls_client_key=key,
        tls_worker_cert=None,
        tls_worker_key=None,
    )
    worker: dict[str, bool | str] = {
        "require_encryption": True,
        "tls_ca_file": authority.certificate,
        "tls_worker_cert": worker_certificate,
        "tls_worker_key": worker_key,
        # For clients that a task creates.
        "tls_client_cert": worker_certificate,
        "tls_client_key": worker_key,
    }
    return ClusterCertificates(security=security, worker=worker)


def worker_options(security: Security) -> dict[str, bool | str | None]:
    """Return the keyword arguments of `distributed.Security` for a worker, from a user's own; files are read here.

    Raises:
        OSError: a file cannot be read.
    """
    config: dict[str, str | None] = security.get_tls_config_for_role("worker")  # pyright: ignore[reportUnknownMemberType]  # untyped
    options = {"tls_ca_file": config["ca_file"], "tls_worker_cert": config["cert"], "tls_worker_key": config["key"]}
    texts = {
        name: value if value is None or "\n" in value else Path(value).read_text("ascii")
        for name, value in options.items()
    }
    encrypts = bool(security.require_encryption)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]  # untyped
    return {"require_encryption": encrypts, "tls_ciphers": config["ciphers"], **texts}


class _Authority:
    """A certificate authority, whose private key exists only as long as this object."""

    def __init__(self, lifetime: timedelta) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec

        now = datetime.now(UTC).replace(microsecond=0)
        self._starts_at = now - _EARLIER
        self._expires_at = now + lifetime + _LONGER
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("cluster")
        builder = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
        )
        self.certificate = self._signed(builder)

    def issue(self, name: str) -> tuple[str, str]:
        """Make a key for a server and client at the loopback address.

        Returns:
            its certificate and the key, both as PEM.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID

        key = ec.generate_private_key(ec.SECP256R1())
        # Both uses in each certificate, because the scheduler also connects to workers, and workers to each other.
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        names = [x509.IPAddress(ipaddress.ip_address(_LOOPBACK))]
        builder = (
            self._builder(_name(name), key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
        )
        text = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return self._signed(builder), text.decode()

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        from cryptography import x509

        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._starts_at)
            .not_valid_after(self._expires_at)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )

    def _signed(self, builder: x509.CertificateBuilder) -> str:
        from cryptography.hazmat.primitives import hashes, serialization

        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def _name(name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"netmind_rentgpu dask {name}")])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
