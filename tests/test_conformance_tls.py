"""The conformance suite over TLS: every connection is an endpoint over TLS, and its peer a blocking `ssl` socket.

Only the parts that are about endpoints. What engines, listeners, connects and limits do lies below TLS, and is the
same; there the oracle would have to speak TLS in places where it does nothing but knock.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from engines import KINDS, MAIN, Kind, factory, skip_unless_installed
from eventengine import EventEngine
from eventengine.testing import oracle
from eventengine.testing.conformance import churn
from eventengine.testing.conformance.churn import *
from eventengine.testing.conformance.closing import *
from eventengine.testing.conformance.collecting import *
from eventengine.testing.conformance.endpoints import *
from eventengine.testing.conformance.exchange import *
from eventengine.testing.conformance.extensions import *
from eventengine.testing.conformance.fixtures import *
from eventengine.testing.conformance.forking import *
from eventengine.testing.conformance.pairs import *
from eventengine.testing.conformance.reading import *
from eventengine.testing.conformance.robustness import *
from eventengine.testing.conformance.waiting import *
from eventengine.testing.conformance.writing import *
from tls_engine import TLSEventEngine, TLSOracleServer, tls_connect

SOME = [kind for kind in KINDS if kind.loop in MAIN and kind.private_poller]

KEYS = "who took the descriptor would not have the keys: an endpoint over TLS does not release it"
SHAKES = "it connects while the quota is full; a handshake reads, and so waits for memory as all that read do"
ENDS = "over TLS the end of a stream is a record, and reading one needs memory"
NOT_OVER_TLS = {
    "test_all_that_wait_go_on_when_all_memory_comes_back": SHAKES,
    "test_those_that_wait_go_on_one_by_one_as_memory_comes_back": SHAKES,
    "test_an_end_or_a_reset_is_told_though_the_quota_is_full": ENDS,
    "test_a_quota_that_vanished_peers_had_filled_is_free_again": ENDS,
    "test_release_hands_the_connection_over_with_all_its_bytes": KEYS,
    "test_release_cancels_an_outstanding_read_and_write": KEYS,
}


@pytest.fixture(params=SOME, ids=lambda kind: kind.id)
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    skip_unless_installed(kind)
    return kind


@pytest.fixture
def make_engine(kind: Kind) -> Iterator[Callable[[], EventEngine]]:
    with factory(kind) as make:
        yield lambda: TLSEventEngine(make())


@pytest.fixture
def make_engine_in_child(kind: Kind) -> Callable[[], AbstractContextManager[Callable[[], EventEngine]]]:
    @contextmanager
    def make() -> Iterator[Callable[[], EventEngine]]:
        with factory(kind) as make_inner:
            yield lambda: TLSEventEngine(make_inner())

    return make


@pytest.fixture(autouse=True)
def applies(request: pytest.FixtureRequest) -> None:
    reason = NOT_OVER_TLS.get(request.function.__name__)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module", autouse=True)
def fewer_come_and_go() -> Iterator[None]:
    """A fifth as many, for a connection costs ten times as much here, and most of that in OpenSSL. By the thousand each
    engine has them in `test_conformance`; the eight over TLS have 2,880 together."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(churn, "DESTROYED", churn.DESTROYED // 5)
        monkeypatch.setattr(churn, "OPENED", churn.OPENED // 5)
        yield


@pytest.fixture(scope="module", autouse=True)
def peers_over_tls() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, module in list(sys.modules.items()):
            if name.startswith("eventengine.testing.") and module is not oracle:
                for attribute, value in list(vars(module).items()):
                    if value is oracle.OracleServer:
                        monkeypatch.setattr(module, attribute, TLSOracleServer)
                    elif value is oracle.connect:
                        monkeypatch.setattr(module, attribute, tls_connect)
        yield
