"""`Session`: an earlier session, to go on with, and what was checked when it was made.

Who goes on with a session gets no certificate, and OpenSSL checks none: neither the host nor the authority. So a
session is good only for the host that it was made with, and where no more is asked for than was checked then.
"""

from __future__ import annotations

import ssl
from typing import Final

__all__ = ["Session"]

_WHAT: Final = {ssl.CERT_NONE: "no certificate", ssl.CERT_OPTIONAL: "a certificate only if there was one"}


class Session:
    """A session as `Secured.session` gives it, for `connect`. Immutable; any thread."""

    __slots__ = ("_host", "_session", "_verify_mode")

    def __init__(self, session: ssl.SSLSession, host: str | None, verify_mode: ssl.VerifyMode) -> None:
        """`host`: whom the certificate was for, if that was checked."""
        self._session = session
        self._host = host
        self._verify_mode = verify_mode

    def put_into(self, tls: ssl.SSLObject) -> None:
        """Before the handshake. Raises ValueError where `tls` must check what was not checked then."""
        context = tls.context
        if context.check_hostname and self._host != tls.server_hostname:
            of = "no host was checked" if self._host is None else f"the host was {self._host!r}"
            raise ValueError(
                f"the session cannot be gone on with for {tls.server_hostname!r}: when it was made, {of}, and there "
                "will be no certificate to look at"
            )
        if context.verify_mode > self._verify_mode:
            raise ValueError(
                f"the session cannot be gone on with: when it was made, {_WHAT[self._verify_mode]} was checked, and "
                "the context asks for more now"
            )
        tls.session = self._session
