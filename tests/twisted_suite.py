"""Runs tests of Twisted's own on a reactor, and prints what became of each, as JSON.

    python twisted_suite.py stock|ours NAME...

A NAME is what trial takes: a package, a module, a class. In a module, ReactorBuilders, which make a reactor for each
test, make such ones; all else runs on one that is installed.
"""

from __future__ import annotations

import io
import json
import sys
from types import ModuleType
from typing import Any, ClassVar, cast
from unittest import TestCase

from twisted.internet import main
from twisted.python.reflect import namedAny
from twisted.trial.reporter import TestResult
from twisted.trial.runner import TestLoader, TestSuite, TrialRunner

from eventengine.bridges.twisted.reactor import QuotaReactor


class Collector(TestResult):
    """Writes down one word for each test."""

    outcomes: ClassVar[dict[str, str]] = {}

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__()
        self.shouldStop = False

    def _note(self, test: Any, outcome: str) -> None:
        name = test.id()
        if self.outcomes.get(name) in (None, "ok"):
            self.outcomes[name] = outcome

    def addSuccess(self, test: Any) -> None:
        self._note(test, "ok")

    def addSkip(self, test: Any, reason: str) -> None:
        self._note(test, "skipped")

    def addExpectedFailure(self, test: Any, error: Any, todo: Any = None) -> None:
        self._note(test, "ok")

    def addUnexpectedSuccess(self, test: Any, todo: Any = None) -> None:
        self._note(test, "ok")

    def addError(self, test: Any, error: Any) -> None:
        self._note(test, "failed")
        print(test.id(), error, file=sys.stderr)

    addFailure = addError

    def cleanupErrors(self, errors: Any) -> None:
        print(errors, file=sys.stderr)

    def done(self) -> None:
        pass


class EPollReactor(QuotaReactor):
    """Some tests look at the name of the class, for what an epoll cannot do."""


def run() -> None:
    kind, *names = sys.argv[1:]
    reactor_class = {"stock": "twisted.internet.epollreactor.EPollReactor", "ours": "__main__.EPollReactor"}[kind]
    main.installReactor(namedAny(reactor_class)())
    from twisted.internet.test.reactormixins import ReactorBuilder

    loader = TestLoader()
    suite = TestSuite()
    for name in names:
        module = namedAny(name)
        if hasattr(module, "__path__") or not isinstance(module, ModuleType):
            suite.addTest(loader.loadByName(name, recurse=True))
            continue
        for each in list(vars(module).values()):
            if not isinstance(each, type) or each.__module__ != name:
                continue
            if issubclass(each, ReactorBuilder):
                if each.__name__.endswith("_EPollReactorTests"):
                    builder = cast("type[ReactorBuilder]", each.__bases__[0])
                    builder._reactors = [reactor_class]
                    for case in builder.makeTestCaseClasses().values():
                        suite.addTest(loader.loadClass(case))
            elif issubclass(each, TestCase):
                suite.addTest(loader.loadClass(each))
    out, sys.stdout = sys.stdout, io.StringIO()
    TrialRunner(Collector, workingDirectory="trial").run(suite)
    print(json.dumps(Collector.outcomes), file=out, flush=True)  # at the exit it is not sure to be flushed


run()
