"""Certificates for tests, made by the `openssl` command once in a process."""

from __future__ import annotations

import atexit
import shutil
import ssl
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

HOST = "server.example"

_AUTHORITY = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign"
"""With identifiers of the keys, what Python 3.13 asks for: it looks at certificates as RFC 5280 has them."""


class Certificates:
    """A folder with an authority of our own, and what it has issued: `NAME.pem` has key and certificate of each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._make("authority", "/CN=authority of the tests", _AUTHORITY, signed_by=None)
        self._make("stranger", "/CN=another authority", _AUTHORITY, signed_by=None)
        alternatives = f"subjectAltName=DNS:{HOST},DNS:localhost,IP:127.0.0.1"
        self._make("server", f"/CN={HOST}", alternatives)
        self._make("client", "/CN=a client", "extendedKeyUsage=clientAuth")
        self._make("expired", f"/CN={HOST}", alternatives, days=-1)
        self._make("self-signed", f"/CN={HOST}", alternatives, signed_by=None)
        self._make("of a stranger", f"/CN={HOST}", alternatives, signed_by="stranger")

    def _make(
        self, name: str, subject: str, extension: str, *, signed_by: str | None = "authority", days: int = 2
    ) -> None:
        key, request, certificate = (self.folder / f"{name}.{end}" for end in ("key", "csr", "crt"))
        extensions = self.folder / f"{name}.ext"
        issued = "" if signed_by is None else "authorityKeyIdentifier=keyid\n"
        extensions.write_text(f"subjectKeyIdentifier=hash\n{issued}{extension}\n")
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
        _openssl("req", "-new", "-key", key, "-subj", subject, "-out", request)
        if signed_by is None:
            signer = ["-signkey", str(key)]
        else:
            signer = [
                *("-CA", str(self.folder / f"{signed_by}.crt"), "-CAkey", str(self.folder / f"{signed_by}.key")),
                "-CAcreateserial",
            ]
        _openssl(
            *("x509", "-req", "-in", request, *signer, "-days", str(days), "-extfile", extensions),
            *("-out", certificate),
        )
        self.path(name).write_bytes(key.read_bytes() + certificate.read_bytes())

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    @property
    def authority(self) -> Path:
        return self.folder / "authority.crt"

    def server_context(self, name: str = "server", *, asks_the_client: bool = False) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path(name))
        if asks_the_client:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.authority)
        return context

    def client_context(self, name: str | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority))
        if name is not None:
            context.load_cert_chain(self.path(name))
        return context


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


_made: list[Certificates] = []
_making = threading.Lock()


def certificates() -> Certificates:
    """The certificates; the test is skipped where there is no `openssl` command. Any thread."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl command to make certificates with")
    with _making:
        if not _made:
            folder = tempfile.mkdtemp(prefix="ee-certificates-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            _made.append(Certificates(Path(folder)))
    return _made[0]
