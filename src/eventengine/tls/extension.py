"""`Secured`: what an endpoint over TLS can be asked for."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping

from eventengine.tls.session import Session

__all__ = ["Secured"]


class Secured:
    """An endpoint over TLS: what was agreed in the handshake, and with whom. Ask for it with `query_extension`.

    All but `session` tell of the handshake, and never change; they may be asked for from any thread, also after close.
    """

    __slots__ = (
        "_checked_host",
        "_session",
        "_verify_mode",
        "alpn_protocol",
        "cipher",
        "is_resumed",
        "peer_certificate",
        "peer_certificate_der",
        "protocol_version",
        "server_name",
    )

    peer_certificate: Mapping[str, object] | None
    """The peer's certificate as `ssl.SSLSocket.getpeercert` has it; empty if it was not verified, None without one."""
    peer_certificate_der: bytes | None
    """The peer's certificate as it was sent (DER), verified or not; None without one."""
    protocol_version: str
    """`"TLSv1.3"`, `"TLSv1.2"`, ..."""
    cipher: str
    """The cipher suite's name, as OpenSSL has it: `"TLS_AES_256_GCM_SHA384"`."""
    alpn_protocol: str | None
    """What both sides speak within (RFC 7301): `"h2"`, `"http/1.1"`, ...; None if they did not talk of it."""
    server_name: str | None
    """The host that we asked for as a client, `server_hostname`; None at a server, whose context's `sni_callback` is
    told what it was asked for."""
    is_resumed: bool
    """Whether the handshake went on with an earlier session, without certificates being sent again."""

    def __init__(self, tls: ssl.SSLObject, session: Callable[[], ssl.SSLSession | None]) -> None:
        """After the handshake, while nobody else uses `tls`."""
        cipher = tls.cipher()
        self.cipher = "" if cipher is None else cipher[0]
        self.protocol_version = tls.version() or ""
        self.alpn_protocol = tls.selected_alpn_protocol()
        self.server_name = tls.server_hostname
        self.is_resumed = bool(tls.session_reused)
        self.peer_certificate = tls.getpeercert()
        self.peer_certificate_der = tls.getpeercert(binary_form=True)
        self._session = session
        self._checked_host: str | None = None
        self._verify_mode = ssl.CERT_NONE
        if not tls.server_side:  # which has no session to tell what was checked for
            context = tls.context
            self._checked_host = self.server_name if context.check_hostname else None
            self._verify_mode = context.verify_mode

    @property
    def session(self) -> Session | None:
        """The session, to give to the next `connect` to the same host with the same context; None at a server.

        With TLS 1.3 the server sends it after the handshake, so ask after the first read; and use each only once, or
        those who watch can tell that it is the same client. May be asked for from any thread.
        """
        session = self._session()
        return None if session is None else Session(session, self._checked_host, self._verify_mode)
