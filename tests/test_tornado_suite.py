"""Tornado's own tests over our servers, clients and streams, beside what they give on its own: see `suites`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tornado", reason="needs the extra tornado")
pytest.importorskip("tornado.test.iostream_test", reason="Tornado is installed without its tests")

from suites import find_worse

MODULES = ["iostream", "httpserver", "web", "websocket", "simple_httpclient", "tcpserver"]


@pytest.mark.timeout(500)
def test_what_tornado_s_own_tests_find_right_is_right_on_ours(tmp_path: Path) -> None:
    assert find_worse("tornado", [f"tornado.test.{name}_test" for name in MODULES], tmp_path) == set()
