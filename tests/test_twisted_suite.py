"""Twisted's own tests over our transports, beside what they give on its own reactor: see `suites`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("twisted.internet", reason="Twisted is not installed")
pytest.importorskip("hamcrest", reason="Twisted's own tests need PyHamcrest")
if not hasattr(__import__("select"), "epoll"):
    pytest.skip("this system has no epoll, whose reactor is compared with", allow_module_level=True)

from twisted import version

from suites import find_worse

MODULES = {
    "reactors": [
        f"twisted.internet.test.test_{name}"
        for name in [
            "tcp",
            "tls",
            "fdset",
            "time",
            "threads",
            "core",
            "base",
            "endpoints",
            "socket",
            "unix",
            "posixbase",
        ]
    ],
    "protocols": ["twisted.web", "twisted.test.test_tcp", "twisted.protocols"],
}


@pytest.mark.timeout(500)
@pytest.mark.parametrize("group", MODULES)
def test_what_twisted_s_own_tests_find_right_is_right_on_our_reactor(group: str, tmp_path: Path) -> None:
    if group == "protocols" and version.major < 23:
        pytest.skip("some of these hang on the stock reactor of Twisted 22, too")
    assert find_worse("twisted", MODULES[group], tmp_path) == set()
