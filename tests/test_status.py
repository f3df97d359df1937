"""Statuses: values that do not change, and the errors that carry or replace them."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import socket
from pathlib import Path

import pytest

from eventengine.status import (
    BusyResourceError,
    ClosedResourceError,
    EmptyBufferError,
    ForkedProcessError,
    Status,
    StatusCode,
    StatusError,
)

REFUSED = Status(StatusCode.UNAVAILABLE, "connecting failed", errno.ECONNREFUSED)


def test_the_codes_are_the_canonical_seventeen_with_the_numbers_of_the_wire() -> None:
    assert [code.name for code in StatusCode] == [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ]
    assert [code.value for code in StatusCode] == list(range(17))


def test_a_status_made_of_nothing_is_ok() -> None:
    assert Status() == Status.OK
    assert (Status.OK.code, Status.OK.message, Status.OK.errno, Status.OK.ok) == (StatusCode.OK, "", None, True)


@pytest.mark.parametrize("code", StatusCode, ids=lambda code: code.name)
def test_only_the_code_ok_is_ok(code: StatusCode) -> None:
    assert Status(code, "why").ok is (code == 0)


def test_a_code_may_be_given_as_its_number() -> None:
    status = Status(14)  # type: ignore[arg-type]
    assert status.code is StatusCode.UNAVAILABLE
    assert not status.ok
    assert Status(0).ok is True  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [17, -1, "OK", None])
def test_what_is_no_code_is_refused_by_its_value(bad: object) -> None:
    with pytest.raises(ValueError, match=f"{bad!r} is not a valid StatusCode"):
        Status(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["code", "message", "errno", "ok", "more"])
@pytest.mark.parametrize("status", [REFUSED, Status.OK], ids=["refused", "ok"])
def test_a_status_cannot_be_set(status: Status, name: str) -> None:
    before = repr(status)
    with pytest.raises(AttributeError, match=f"^a Status does not change; cannot set {name}$"):
        setattr(status, name, 1)
    assert repr(status) == before


@pytest.mark.parametrize("name", ["code", "message", "errno", "ok"])
def test_a_status_loses_nothing_by_del(name: str) -> None:
    status = Status(StatusCode.UNAVAILABLE, "connecting failed", errno.ECONNREFUSED)
    with pytest.raises(AttributeError, match="a Status does not change"):
        delattr(status, name)
    assert status == REFUSED


@pytest.mark.parametrize("status", [REFUSED, Status.OK], ids=["refused", "ok"])
def test_a_status_has_no_truth_value(status: Status) -> None:
    with pytest.raises(TypeError, match=r"^a Status has no truth value; ask status\.ok$"):
        bool(status)


def test_statuses_are_equal_when_code_message_and_errno_are() -> None:
    twin = Status(StatusCode.UNAVAILABLE, "connecting failed", errno.ECONNREFUSED)
    assert twin == REFUSED
    assert hash(twin) == hash(REFUSED)
    assert len({twin, REFUSED}) == 1


@pytest.mark.parametrize(
    "other",
    [
        Status(StatusCode.INTERNAL, "connecting failed", errno.ECONNREFUSED),
        Status(StatusCode.UNAVAILABLE, "reading failed", errno.ECONNREFUSED),
        Status(StatusCode.UNAVAILABLE, "connecting failed", errno.ECONNRESET),
        Status(StatusCode.UNAVAILABLE, "connecting failed"),
        StatusCode.UNAVAILABLE,
        (StatusCode.UNAVAILABLE, "connecting failed", errno.ECONNREFUSED),
        None,
    ],
    ids=["code", "message", "errno", "no errno", "a code", "a tuple", "None"],
)
def test_a_status_differs_from_one_that_differs_in_one_part_and_from_all_else(other: object) -> None:
    assert (other == REFUSED) is False
    assert (other != REFUSED) is True


@pytest.mark.parametrize("status", [REFUSED, Status(StatusCode.ABORTED, "é"), Status.OK])
def test_a_status_survives_pickling_and_copying(status: Status) -> None:
    copies = [pickle.loads(pickle.dumps(status, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for twin in [*copies, copy.copy(status), copy.deepcopy(status)]:
        assert twin == status
        assert twin.ok is status.ok
        assert type(twin.code) is StatusCode


def test_the_text_of_a_status_is_its_code_and_its_message() -> None:
    assert str(REFUSED) == "UNAVAILABLE: connecting failed"
    assert str(Status(StatusCode.CANCELLED)) == "CANCELLED"
    assert str(Status.OK) == "OK"


def test_the_repr_of_a_status_has_its_errno_where_there_is_one() -> None:
    assert repr(REFUSED) == f"Status(UNAVAILABLE, 'connecting failed', errno={errno.ECONNREFUSED})"
    assert repr(Status(StatusCode.ABORTED, "no")) == "Status(ABORTED, 'no')"
    assert repr(Status.OK) == "Status.OK"


@pytest.mark.parametrize(
    ("name", "code"),
    [(name, StatusCode.RESOURCE_EXHAUSTED) for name in ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "ENOSPC")]
    + [(name, StatusCode.PERMISSION_DENIED) for name in ("EACCES", "EPERM")]
    + [
        (name, StatusCode.INVALID_ARGUMENT)
        for name in ("EINVAL", "EAFNOSUPPORT", "EPROTONOSUPPORT", "ENAMETOOLONG")
    ]
    + [
        (name, StatusCode.UNAVAILABLE)
        for name in (
            "ECONNREFUSED",
            "ECONNRESET",
            "ECONNABORTED",
            "EPIPE",
            "ETIMEDOUT",
            "EHOSTUNREACH",
            "ENETUNREACH",
            "ENETDOWN",
            "EHOSTDOWN",
            "EADDRINUSE",
            "ENOENT",
        )
    ],
)
def test_the_code_of_an_errno(name: str, code: StatusCode) -> None:
    number = getattr(errno, name)
    status = Status.from_errno(number, "binding to a port")
    assert status == Status(code, f"binding to a port: {os.strerror(number)} ({name})", number)


def test_an_errno_without_a_name_is_given_by_its_number() -> None:
    status = Status.from_errno(99999, "reading")
    assert (status.code, status.errno) == (StatusCode.UNAVAILABLE, 99999)
    assert status.message.startswith("reading: ")
    assert status.message.endswith("(99999)")


def test_a_failed_system_call_becomes_a_status_that_says_what_was_tried(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(OSError, match="No such file") as caught:
        sock.connect(str(tmp_path / "nobody"))
    assert caught.value.errno is not None
    status = Status.from_errno(caught.value.errno, "connecting")
    assert str(status) == f"UNAVAILABLE: connecting: {os.strerror(errno.ENOENT)} (ENOENT)"


def test_a_status_error_carries_its_status_and_reads_as_it() -> None:
    error = StatusError(REFUSED)
    assert error.status is REFUSED
    assert error.args == (REFUSED,)
    assert str(error) == "UNAVAILABLE: connecting failed"


def test_a_status_error_survives_pickling() -> None:
    twin = pickle.loads(pickle.dumps(StatusError(REFUSED)))
    assert type(twin) is StatusError
    assert twin.status == REFUSED


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (BusyResourceError, RuntimeError),
        (ClosedResourceError, RuntimeError),
        (EmptyBufferError, IndexError),
        (ForkedProcessError, RuntimeError),
    ],
)
def test_misuse_has_exceptions_of_its_own_that_are_no_status(error: type[Exception], builtin: type) -> None:
    assert issubclass(error, builtin)
    assert not issubclass(error, StatusError | OSError)
