"""What pytest loads of eventengine, wherever that is installed: two options, which do nothing until they are used.

It stands beside the package, as `_hypothesis_pytestplugin` does, for whoever imports a part of a package imports the
package. What the options do is in `eventengine.testing.plugin`.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

SUITE = "eventengine.testing.conformance"

_OPTIONS = [
    (
        "--engine",
        "MODULE:FUNCTION",
        f"what makes the event engine for `--pyargs {SUITE}` and the fixture `engine`; may be given several times",
    ),
    (
        "--engine-without",
        "CAPABILITY",
        "what the engine is known to be without; may be given several times",
    ),
]


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_load_initial_conftests(parser: pytest.Parser) -> Generator[None]:
    """Adds the options when all plugins and conftests have added theirs: one of theirs may have such a name, too."""
    yield
    for name, metavar, text in _OPTIONS:
        if _is_free(parser, name):
            dest = name.removeprefix("--engine").replace("-", "_")
            parser.getgroup("eventengine").addoption(
                name, dest=f"eventengine{dest}", metavar=metavar, action="append", default=[], help=text
            )


def _is_free(parser: pytest.Parser, option: str) -> bool:
    text = f"{option}=x"
    try:
        return text in parser.parse_known_and_unknown_args([text])[1]
    except (Exception, SystemExit):  # it is known, and "x" is no value of it
        return False


def pytest_configure(config: pytest.Config) -> None:
    engines = config.getoption("eventengine", None)
    without = config.getoption("eventengine_without", None)
    for argument in config.args if config.getoption("pyargs") else ():
        if argument == SUITE and engines is None:
            raise pytest.UsageError(
                f"{SUITE} cannot be run by an option, for another plugin or a conftest.py has an option --engine"
            )
        if argument == SUITE and not engines:
            raise pytest.UsageError(f"{SUITE} needs an engine to test: --engine my.module:make_engine")
        if argument.startswith((f"{SUITE}.", f"{SUITE}::")):
            raise pytest.UsageError(f"{argument}: a part of {SUITE} is run by its name, as with -k reading")
    if engines or without:
        from eventengine.testing import plugin  # only now: see above

        plugin.start(config, engines or [], without or [])
