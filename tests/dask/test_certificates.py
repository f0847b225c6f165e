"""The certificates of a cluster, between a real scheduler, workers and clients."""

from __future__ import annotations

import asyncio
import copy
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from distributed import Client, Scheduler, Security, Worker

from netmind_rentgpu.dask.certificates import ClusterCertificates, make_certificates

LIFETIME = timedelta(hours=8)


def sent(certificates: ClusterCertificates) -> Security:
    """Return the security of a worker, as it is after its way through JSON."""
    return Security(**json.loads(json.dumps(certificates.worker)))


@asynccontextmanager
async def cluster(certificates: ClusterCertificates, workers: int = 1) -> AsyncIterator[Scheduler]:
    """Run a scheduler, and workers that have only what is sent to them."""
    async with Scheduler(
        host="127.0.0.1", port=0, protocol="tls", security=certificates.security, dashboard_address="127.0.0.1:0"
    ) as scheduler:
        running = [
            Worker(
                scheduler.address,
                host="127.0.0.1",
                protocol="tls",
                security=sent(certificates),
                nthreads=1,
                dashboard=False,
                dashboard_address="127.0.0.1:0",
            )
            for _ in range(workers)
        ]
        try:
            await asyncio.gather(*running)
            yield scheduler
        finally:
            await asyncio.gather(*(worker.close() for worker in running))


def client(scheduler: Scheduler, security: Security) -> Client:
    return Client(scheduler.address, security=security, asynchronous=True, set_as_default=False)


@pytest.fixture
def certificates() -> ClusterCertificates:
    return make_certificates(LIFETIME)


async def test_scheduler_workers_and_client_work_together(certificates: ClusterCertificates) -> None:
    async with cluster(certificates, workers=2) as scheduler, client(scheduler, certificates.security) as ours:
        one, two = scheduler.workers
        parts = [ours.submit(lambda: 20, workers=[one]), ours.submit(lambda: 22, workers=[two])]
        # One worker fetches a part from the other.
        assert await ours.submit(sum, parts, workers=[two]) == 42
        # The client also reads from the workers themselves.
        assert await ours.gather(parts, direct=True) == [20, 22]
        await ours.retire_workers([one])
        assert list(scheduler.workers) == [two]
        assert all(address.startswith("tls://127.0.0.1:") for address in (scheduler.address, one, two))


async def test_client_within_a_task_works(certificates: ClusterCertificates) -> None:
    def submit_another() -> int:
        with distributed.worker_client() as inner:
            return inner.submit(lambda: 42).result()

    async with cluster(certificates) as scheduler, client(scheduler, certificates.security) as ours:
        assert await ours.submit(submit_another) == 42


# The limits of trust.


def context_of(security: Security, role: str) -> ssl.SSLContext:
    context = security.get_connection_args(role)["ssl_context"]
    assert isinstance(context, ssl.SSLContext)
    return context


async def answer(address: str, context: ssl.SSLContext) -> bytes:
    """Return the beginning of the greeting with which Dask accepts a connection."""
    host, _, port = address.removeprefix("tls://").rpartition(":")
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        try:
            return await reader.readexactly(1)
        finally:
            writer.transport.abort()


REFUSED = (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)


def forged(certificates: ClusterCertificates) -> dict[str, Any]:
    """Return the arguments of a client whose certificate was signed by a worker's key."""
    signer = serialization.load_pem_private_key(str(certificates.worker["tls_worker_key"]).encode(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    text = str(certificates.worker["tls_worker_cert"])
    issuer = x509.load_pem_x509_certificate(text.encode())
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(issuer.subject)
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(minutes=1))
        .not_valid_after(datetime.now(UTC) + timedelta(hours=1))
        .sign(signer, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    chain = certificate.public_bytes(serialization.Encoding.PEM).decode() + text
    return {**certificates.worker, "tls_client_cert": chain, "tls_client_key": pem.decode()}


async def test_client_is_refused_by_scheduler_and_worker_without_a_certificate_of_the_cluster(
    certificates: ClusterCertificates,
) -> None:
    without = ssl.create_default_context(cadata=certificates.security.tls_ca_file)
    strangers = make_certificates(LIFETIME).security
    # It trusts this cluster, but the cluster does not trust it.
    strangers.tls_ca_file = certificates.security.tls_ca_file
    async with cluster(certificates) as scheduler:
        for address in (scheduler.address, *scheduler.workers):
            assert await answer(address, context_of(certificates.security, "client"))
            for context in (
                without,
                context_of(strangers, "client"),
                context_of(Security(**forged(certificates)), "client"),
            ):
                with pytest.raises(REFUSED):
                    await answer(address, context)


async def test_cluster_with_other_certificates_is_refused_by_client_and_worker(
    certificates: ClusterCertificates,
) -> None:
    other = make_certificates(LIFETIME)
    async with cluster(certificates) as scheduler:
        for context in (context_of(other.security, "client"), context_of(sent(other), "worker")):
            with pytest.raises(ssl.SSLCertVerificationError):
                await answer(scheduler.address, context)


async def test_expired_certificates_open_no_connection() -> None:
    certificates = make_certificates(timedelta(minutes=-65))
    assert all(certificate.not_valid_after_utc < datetime.now(UTC) for certificate in certificates_in(certificates))
    async with Scheduler(
        host="127.0.0.1", port=0, protocol="tls", security=certificates.security, dashboard_address="127.0.0.1:0"
    ) as scheduler:
        context = context_of(certificates.security, "client")
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            await answer(scheduler.address, context)
        context.verify_mode = ssl.CERT_NONE
        with pytest.raises(REFUSED):
            await answer(scheduler.address, context)


async def test_worker_has_the_same_rights_as_the_client_because_dask_has_no_roles(
    certificates: ClusterCertificates,
) -> None:
    async with cluster(certificates) as scheduler, client(scheduler, sent(certificates)) as workers_client:
        assert await workers_client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.address) == scheduler.address


# The certificates themselves.


def certificates_in(certificates: ClusterCertificates) -> tuple[x509.Certificate, x509.Certificate, x509.Certificate]:
    here = certificates.security
    texts = (here.tls_ca_file, here.tls_client_cert, certificates.worker["tls_worker_cert"])
    authority, ours, workers = (x509.load_pem_x509_certificate(str(text).encode()) for text in texts)
    return authority, ours, workers


def test_certificates_outlive_the_cluster_and_begin_before_it(certificates: ClusterCertificates) -> None:
    now = datetime.now(UTC)
    for certificate in certificates_in(certificates):
        assert now - timedelta(hours=1) < certificate.not_valid_before_utc < now - timedelta(minutes=5)
        assert timedelta(minutes=30) < certificate.not_valid_after_utc - now - LIFETIME < timedelta(hours=2)


def test_only_the_authority_may_sign_and_its_key_is_kept_nowhere(certificates: ClusterCertificates) -> None:
    authority, ours, workers = certificates_in(certificates)
    for certificate, may_sign in ((authority, True), (ours, False), (workers, False)):
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        assert constraints.ca == usage.key_cert_sign == may_sign
        certificate.verify_directly_issued_by(authority)
    keys = {certificates.security.tls_client_key, certificates.worker["tls_worker_key"]}
    assert len(keys) == 2
    for text in keys:
        key = serialization.load_pem_private_key(str(text).encode(), None)
        assert key.public_key() != authority.public_key()


def test_certificates_satisfy_a_strict_verification_with_the_address(certificates: ClusterCertificates) -> None:
    server = sent(certificates).get_listen_args("worker")["ssl_context"]
    strict = context_of(certificates.security, "client")
    strict.verify_flags |= ssl.VERIFY_X509_STRICT
    strict.check_hostname = True
    client_in, client_out, server_in, server_out = (ssl.MemoryBIO() for _ in range(4))
    ours = strict.wrap_bio(client_in, client_out, server_hostname="127.0.0.1")
    theirs = server.wrap_bio(server_in, server_out, server_side=True)
    waiting: list[Any] = [ours, theirs]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                pass
            server_in.write(client_out.read())
            client_in.write(server_out.read())
    assert waiting == []
    assert ours.version() == "TLSv1.3"


def test_old_versions_of_tls_are_refused_on_both_sides(certificates: ClusterCertificates) -> None:
    for security, roles in (
        (certificates.security, ("client", "scheduler")),
        (sent(certificates), ("client", "worker")),
    ):
        assert security.require_encryption is True
        for role in roles:
            assert context_of(security, role).minimum_version >= ssl.TLSVersion.TLSv1_2
            assert context_of(security, role).verify_mode == ssl.CERT_REQUIRED


def test_each_cluster_has_certificates_of_its_own(certificates: ClusterCertificates) -> None:
    other = make_certificates(LIFETIME)
    assert not set(map(str, other.worker.values())) & set(map(str, certificates.worker.values())) - {"True"}


def test_keys_show_in_no_repr_and_not_in_the_configuration_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = copy.deepcopy(dask.config.config)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    certificates = make_certificates(LIFETIME)
    shown = f"{certificates!r} {certificates} {certificates.security!r} {certificates.security._repr_html_()}"
    for text in (shown, repr(dask.config.config), repr(sent(certificates))):
        assert "PRIVATE KEY" not in text
    assert dask.config.config == before
    # Dask writes a key for a moment, where the standard library reads keys from files alone.
    context_of(certificates.security, "client")
    assert list(tmp_path.iterdir()) == []


def test_users_own_certificates_in_the_configuration_are_not_used() -> None:
    own = {
        f"distributed.comm.tls.{role}.{kind}": "/users/own"
        for role in ("client", "scheduler", "worker")
        for kind in ("cert", "key")
    }
    with dask.config.set({**own, "distributed.comm.tls.ca-file": "/users/own"}):
        security = make_certificates(LIFETIME).security
    assert "/users/own" not in [getattr(security, name) for name in Security.__slots__]
