"""TLS with the certificate of Tornado's own tests."""

from __future__ import annotations

import ssl
from pathlib import Path

import tornado.test


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For a server, and for its clients."""
    certificate = Path(tornado.test.__file__).with_name("test.crt")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, certificate.with_suffix(".key"))
    client = ssl.create_default_context()
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    return server, client
