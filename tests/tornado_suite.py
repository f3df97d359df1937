# ruff: noqa: N802, N815  # unittest's own names
"""Runs tests of Tornado's own on its servers, clients and streams or on ours, and prints what became of each, as JSON.

    python tornado_suite.py stock|ours NAME...

A NAME is a module. The tests find what they test as globals of their modules, so ours are put there.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import sys
from functools import partial
from typing import Any, ClassVar
from unittest import TestResult, TestSuite, defaultTestLoader

from tornado import simple_httpclient
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.log import gen_log
from tornado.test import iostream_test, tcpserver_test, util

from eventengine import ResourceQuota
from eventengine.bridges.tornado import QuotaHTTPServer, QuotaTCPClient, QuotaTCPServer, reads
from eventengine.bridges.tornado.bound import Bound
from eventengine.bridges.tornado.reads import BoundedIOStream, BoundedSSLIOStream

QUOTA = ResourceQuota("suite", memory="64MiB")


class Collector(TestResult):
    """Writes down one word for each test: `logged` where it passed, but a warning was logged that nobody expected."""

    outcomes: ClassVar[dict[str, str]] = {}
    logged: ClassVar[list[str]] = []

    def startTest(self, test: Any) -> None:
        self.logged.clear()
        super().startTest(test)

    def _note(self, test: Any, outcome: str) -> None:
        self.outcomes.setdefault(test.id(), outcome)

    def addSuccess(self, test: Any) -> None:
        self._note(test, "logged" if self.logged else "ok")
        if self.logged:
            print(test.id(), *self.logged, file=sys.stderr)

    def addExpectedFailure(self, test: Any, error: Any) -> None:
        self._note(test, "ok")

    def addUnexpectedSuccess(self, test: Any) -> None:
        self._note(test, "ok")

    def addSkip(self, test: Any, reason: str) -> None:
        if reason != getattr(util, "ABT_SKIP_MESSAGE", None):  # of classes that are to be mixed in
            self._note(test, "skipped")

    def addError(self, test: Any, error: Any) -> None:
        self._note(test, "failed")
        print(test.id(), self._exc_info_to_string(error, test), file=sys.stderr)  # type: ignore[attr-defined]

    addFailure = addError

    def addSubTest(self, test: Any, subtest: Any, error: Any) -> None:
        if error is not None:
            self.addError(test, error)


class Log(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        Collector.logged.append(record.getMessage())


def charged(kind: type[Any]) -> type[Any]:
    """The kind of stream, which finds the quota itself."""

    class Charged(kind):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.charge(Bound.of(QUOTA, IOLoop.current().asyncio_loop))  # type: ignore[attr-defined]

    Charged.__name__ = kind.__name__
    return Charged


class TCPServer(QuotaTCPServer):
    """What its tests make their own servers of."""

    def __init__(self, **options: Any) -> None:
        super().__init__(quota=QUOTA, **options)


def put_ours_in_place() -> None:
    # A server of ours says what bounds it; these tests fail for each line that they do not expect.
    gen_log.addFilter(lambda record: "connections are bounded by the quota" not in record.getMessage())
    HTTPServer.configure(QuotaHTTPServer, quota=QUOTA)
    for module in (iostream_test, tcpserver_test):
        module.TCPServer = TCPServer  # type: ignore[attr-defined]
        module.IOStream = charged(BoundedIOStream)  # type: ignore[attr-defined]
    ssl_kind = charged(BoundedSSLIOStream)
    iostream_test.SSLIOStream = reads.BoundedSSLIOStream = ssl_kind  # type: ignore[attr-defined,misc]
    simple_httpclient.TCPClient = partial(QuotaTCPClient, quota=QUOTA)  # type: ignore[attr-defined]


def run() -> None:
    kind, *names = sys.argv[1:]
    if {"stock": False, "ours": True}[kind]:
        put_ours_in_place()
    logging.getLogger("tornado.access").setLevel(logging.CRITICAL)
    logging.getLogger().addHandler(Log(logging.WARNING))
    suite = TestSuite(defaultTestLoader.loadTestsFromModule(importlib.import_module(name)) for name in names)
    out, sys.stdout = sys.stdout, io.StringIO()
    suite.run(Collector())
    print(json.dumps(Collector.outcomes), file=out, flush=True)  # at the exit it is not sure to be flushed


run()
