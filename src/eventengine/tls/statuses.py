"""What went wrong with TLS, as statuses: one table from OpenSSL's reasons to sentences.

UNAUTHENTICATED says that one side did not accept who the other is: trying again will not help, another certificate
or another context will. All else is UNAVAILABLE, as for any connection that broke: the peer, or what lies between,
does not speak TLS as we do.
"""

from __future__ import annotations

import ssl
from typing import Final

from eventengine.status import Status, StatusCode

__all__ = ["CLEAN_END", "UNCLEAN_END", "status_of", "unexpected_end"]

CLEAN_END: Final = Status(StatusCode.OUT_OF_RANGE, "the peer ended its stream")
UNCLEAN_END: Final = Status(
    StatusCode.UNAVAILABLE,
    "the connection ended without the end of the TLS stream (no close_notify): what was read may have been cut off",
)

_HANDSHAKE_TYPES: Final = range(20, 25)  # of a record's first byte, RFC 8446, 5.1

_REFUSED: Final = {
    2: "was issued by an authority that is not trusted here (unknown authority)",
    9: "is not valid yet",
    10: "has expired",
    18: "is self-signed, and not among those that are trusted here",
    19: "was issued by an authority that is not trusted here (its chain ends in a self-signed certificate)",
    20: "was issued by an authority that is not trusted here (unknown authority)",
    21: "was issued by an authority that is not trusted here (unknown authority)",
    23: "was revoked",
}
"""Of X509_V_ERR_*, by number: `x509_vfy.h`."""
_WRONG_HOST: Final = (62, 64)

_ABOUT_CERTIFICATES: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the peer sent no certificate, and one is required",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer requires a certificate of ours, and got none",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the peer refused our certificate as bad",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "the peer refused our certificate as of a kind that it does not know",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the peer refused our certificate as expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "the peer refused our certificate as revoked",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the peer refused our certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "the peer refused our certificate: it does not trust the authority that issued it",
    "TLSV1_ALERT_ACCESS_DENIED": "the peer refused our certificate: it gives us no access",
}
_REASONS: Final = {
    "NO_SHARED_CIPHER": "the two sides have no cipher suite in common",
    "UNSUPPORTED_PROTOCOL": "the two sides have no version of TLS in common",
    "WRONG_SSL_VERSION": "the two sides have no version of TLS in common",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the peer speaks none of our versions of TLS",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "the peer has nothing in common with us, or wants a certificate",
    "TLSV1_UNRECOGNIZED_NAME": "the peer does not know the host that was asked for (unrecognized_name)",
    "NO_APPLICATION_PROTOCOL": "the two sides have no application protocol in common (ALPN)",
    "TLSV1_ALERT_NO_APPLICATION_PROTOCOL": "the two sides have no application protocol in common (ALPN)",
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC": "what came was changed on the way, or is not TLS (bad record MAC)",
}


def status_of(error: Exception, doing: str, *, host: str | None = None, first: bytes = b"") -> Status:
    """The status for what `ssl` raised.

    Args:
        doing: What was tried, in a few words.
        host: The host that the peer's certificate must be for.
        first: The first bytes that the peer sent, if this is about its first message.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _WRONG_HOST:
            why = f"is for another host than {host!r}" if host else "is for another host"
        else:
            why = _REFUSED.get(error.verify_code, f"was refused: {error.verify_message}")
        return Status(StatusCode.UNAUTHENTICATED, f"{doing}: the peer's certificate {why}")
    if not isinstance(error, ssl.SSLError):
        return Status(StatusCode.INTERNAL, f"{doing}: {error!r} was raised")
    reason = error.reason or _named(error)
    if reason in _ABOUT_CERTIFICATES:
        return Status(StatusCode.UNAUTHENTICATED, f"{doing}: {_ABOUT_CERTIFICATES[reason]}")
    if first and first[0] not in _HANDSHAKE_TYPES:
        return Status(StatusCode.UNAVAILABLE, f"{doing}: the peer does not speak TLS, it began with {first!r}")
    if reason in _REASONS:
        text = _REASONS[reason]
    elif "_ALERT_" in reason:
        text = f"the peer gave up ({reason.partition('_ALERT_')[2].lower()})"
    else:
        text = f"what the peer sent is no TLS that we understand ({reason.lower().replace('_', ' ') or error})"
    return Status(StatusCode.UNAVAILABLE, f"{doing}: {text}")


def _named(error: ssl.SSLError) -> str:
    """The reason, from the text: `ssl` names those alone that OpenSSL had when Python was made. It writes the others as
    in "[SSL] tlsv1 alert no application protocol (_ssl.c:1006)"."""
    return str(error).partition("] ")[2].rpartition(" (")[0].upper().replace(" ", "_")


def unexpected_end(status: Status, doing: str, *, anything_came: bool) -> Status:
    """The status for a connection that ended in the handshake with `status`."""
    if status.code is not StatusCode.OUT_OF_RANGE:
        return Status(status.code, f"{doing}: {status.message}", status.errno)
    how = "in the middle of it" if anything_came else "before it sent anything; does it speak TLS?"
    return Status(StatusCode.UNAVAILABLE, f"{doing}: the peer hung up {how}")
