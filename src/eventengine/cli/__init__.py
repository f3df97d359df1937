"""The command line, `python -m eventengine`: `proxy` and `demo`.

Exit status: 0 if all went well; 1 if the world was against it (a port that is taken, an extra that is missing, a
digest that differs); 2 if the command was wrong. Whatever goes wrong is told in one line on stderr.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from eventengine.address import ResolvedAddress
from eventengine.cli.engines import ENGINES
from eventengine.cli.proxy_tls import ProxyTLS, client_context, server_context, server_name_for
from eventengine.core.resolver import parse_dns_server
from eventengine.memory_quota import parse_size
from eventengine.target import Target

__all__ = ["main"]

T = TypeVar("T")

_SMALLEST_MEMORY = 64 * 1024
_HOST_AND_PORT = re.compile(r"(?:[\w-]{1,63}\.)*(?![0-9]+\.?:)[\w-]{1,63}\.?:[0-9]{1,5}")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


class _Version(argparse.Action):
    """Looks it up only when it is asked for: the rest runs also where the package is not installed, but on the path."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, values: object, option_string: object = None
    ) -> NoReturn:
        print(f"{parser.prog} {importlib.metadata.version('eventengine')}")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command in `arguments` (None: those of the process) and returns its exit status."""
    parser = _Parser(prog="eventengine", description="gRPC's EventEngine for Python.", allow_abbrev=False)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version that is installed, and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="proxy|demo")
    proxy = commands.add_parser(
        "proxy",
        allow_abbrev=False,
        help="pass connections on, within a bound on memory",
        description="Passes TCP and unix connections on, within a bound on memory. Ctrl-C ends it with a summary.",
        epilog="An address is 127.0.0.1:80, [::1]:80, unix:/path, unix-abstract:name or vsock:cid:port. A target is "
        "one of these, or a name as in localhost:80 or dns://server/localhost:80, whose addresses are tried 250 ms "
        "apart, or a list as in ipv4:127.0.0.1:80,127.0.0.2:80 or ipv6:[::1]:80.",
    )
    proxy.add_argument(
        "--listen",
        required=True,
        metavar="ADDR",
        type=_argument(_listen_address),
        help="where to accept connections; port 0 takes a free one",
    )
    proxy.add_argument(
        "--to",
        required=True,
        metavar="TARGET",
        type=_argument(_target),
        help="where to pass them on to: an address, a name as in localhost:8080, or a list",
    )
    proxy.add_argument("--engine", choices=ENGINES, default="default", help="what runs it (default: %(default)s)")
    proxy.add_argument(
        "--memory",
        metavar="SIZE",
        type=_argument(_memory),
        default="64MiB",
        help="the most to hold, as in 64MiB: half of it each way (default: %(default)s)",
    )
    proxy.add_argument(
        "--idle-timeout",
        metavar="S",
        type=_argument(_seconds),
        help="close a connection on which nothing was passed on for S seconds",
    )
    proxy.add_argument(
        "--max-connections",
        metavar="N",
        type=_argument(_count),
        help="the most at a time; others wait in the backlog",
    )
    proxy.add_argument(
        "--dns-server",
        metavar="ADDRESS",
        type=_argument(_dns_server),
        help="who is asked for names, as in 192.0.2.53 or [2001:db8::53]:5353 (default: as the system is set up)",
    )
    proxy.add_argument(
        "--tls-cert",
        metavar="FILE",
        type=Path,
        help="accept TLS from clients, with the certificate in FILE (PEM) and those between it and the clients' own",
    )
    proxy.add_argument(
        "--tls-key", metavar="FILE", type=Path, help="where its private key is (default: in the same file)"
    )
    proxy.add_argument("--to-tls", action="store_true", help="speak TLS with the target, and verify who it is")
    proxy.add_argument(
        "--to-ca",
        metavar="FILE",
        type=Path,
        help="the authorities (PEM) of which one must have issued its certificate (default: those of the system)",
    )
    proxy.add_argument(
        "--to-server-name",
        metavar="NAME",
        help="whom its certificate must be for (default: the host in the target)",
    )
    proxy.add_argument("--log", action="store_true", help="a line on stderr for each connection that ended")
    demonstration = commands.add_parser(
        "demo",
        allow_abbrev=False,
        help="download a file through the proxy, on each engine, and attack web sites",
        description="Downloads a file through the proxy, on each engine whose framework is installed. Then attacks "
        "web sites of Tornado and twisted.web, stock and bounded, and shows what memory they take.",
    )
    demonstration.add_argument(
        "--plot",
        metavar="FILE.svg",
        type=_argument(_file_to_write),
        help="draw the memory of the web sites over time",
    )
    options = parser.parse_args(arguments)
    if options.command == "demo":
        from eventengine.cli import demo

        return demo.run(options.plot)
    from eventengine.cli import serve

    try:
        tls = _tls(options)
    except ValueError as error:
        proxy.error(str(error))
    return serve.run(
        options.listen,
        options.to,
        engine=options.engine,
        memory=options.memory,
        idle_timeout=options.idle_timeout,
        dns_server=options.dns_server,
        max_connections=options.max_connections,
        tls=tls,
        log=options.log,
    )


def _tls(options: argparse.Namespace) -> ProxyTLS:
    if options.tls_key is not None and options.tls_cert is None:
        raise ValueError("argument --tls-key: there is no --tls-cert that it could be the key of")
    for option, value in (("--to-ca", options.to_ca), ("--to-server-name", options.to_server_name)):
        if value is not None and not options.to_tls:
            raise ValueError(f"argument {option}: the target is spoken to without TLS; give --to-tls, too")
    return ProxyTLS(
        None if options.tls_cert is None else server_context(options.tls_cert, options.tls_key),
        client_context(options.to_ca) if options.to_tls else None,
        server_name_for(options.to, options.to_server_name) if options.to_tls else None,
    )


def _argument(read: Callable[[str], T]) -> Callable[[str], T]:
    """`read` for argparse, which shows the text of this exception only."""

    def convert(text: str) -> T:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _listen_address(text: str) -> ResolvedAddress:
    if _HOST_AND_PORT.fullmatch(text):
        raise ValueError(f"{text!r} has a name; give the IP address to listen on, as in 127.0.0.1:8080")
    return ResolvedAddress.parse(text)


def _target(text: str) -> Target:
    target = Target.parse(text, default_port="")
    if target.name.endswith(":0") or any(address.port == 0 for address in target.addresses):
        raise ValueError(f"{text!r}: the port to pass connections on to is a number from 1 to 65535")
    return target


def _dns_server(text: str) -> str:
    return str(parse_dns_server(text))


def _memory(text: str) -> int:
    size = parse_size(text)
    if size < _SMALLEST_MEMORY:
        raise ValueError(f"{text!r} is too little to pass anything on; give 64KiB or more")
    return size


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"{text!r} is not a time; give a number of seconds above 0")
    return seconds


def _file_to_write(text: str) -> Path:
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise ValueError(f"{text!r} cannot be written; give a file in a folder that exists")
    if path.suffix.lower() != ".svg":
        raise ValueError(f"{text!r} cannot be drawn; the chart is SVG, so give a name that ends in .svg")
    return path


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise ValueError(f"{text!r} is not a number of connections; give 1 or more")
    return int(text)
