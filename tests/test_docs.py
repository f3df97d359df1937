"""Every example, link and command of the README and docs/ does what it says.

A ```python block runs in a process of its own, with warnings as errors, and must end well and silently but for what
it prints; a ```text block right after it is what it must print. A block under `<!-- test: server -->` runs until it is
interrupted instead, and must take a connection on the port that it says it listens on. A block whose first line is a
comment with a file's name is a file by that name, which the page's other blocks may import.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import selectors
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import eventengine
from engines import is_installed

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
TIMEOUT = 60
# The package under test, also where it is not installed but found by a relative PYTHONPATH.
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(eventengine.__file__).parents[1]),
    "PYTHONDONTWRITEBYTECODE": "1",
}
SERVER = "<!-- test: server -->"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# (\w+\.py)\b")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PORT = re.compile(r"(?<=127\.0\.0\.1:)8007\b")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    is_server: bool
    output: str | None

    @property
    def file_name(self) -> str:
        name = FILE_NAME.match(self.text)
        return name[1] if name else f"line_{self.line}.py"

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


@functools.cache
def blocks_of(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    fences = list(FENCE.finditer(text))
    blocks = []
    for fence, following in itertools.zip_longest(fences, fences[1:]):
        has_output = following and following[1] == "text" and not text[fence.end() : following.start()].strip()
        blocks.append(
            Block(
                page=page,
                line=text.count("\n", 0, fence.start()) + 1,
                language=fence[1],
                text=fence[2],
                is_server=text[: fence.start()].rstrip().endswith(SERVER),
                output=following[2] if following and has_output else None,
            )
        )
    return blocks


def all_blocks(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page) if block.language in languages]


EXAMPLES = all_blocks("python")
COMMANDS = [
    (block, line.partition("#")[0].strip())
    for block in all_blocks("sh")
    for line in block.text.replace("\\\n", " ").splitlines()
    if re.search(r"\bpython3? -m eventengine\b", line)
]


def skip_without_framework(block: Block) -> None:
    for framework in ("twisted", "tornado", "uvloop"):
        if re.search(rf"\b(import|from) \S*\b{framework}\b", block.text) and not is_installed(framework):
            pytest.skip(f"this example needs {framework}, which is not installed")


def start(block: Block, folder: Path) -> subprocess.Popen[str]:
    for each in blocks_of(block.page):
        if each.language == "python":
            (folder / each.file_name).write_text(PORT.sub("0", each.text), "utf-8")
    return subprocess.Popen(
        [sys.executable, "-W", "error", block.file_name],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("block", [block for block in EXAMPLES if not block.is_server], ids=str)
def test_the_example_runs_and_prints_what_the_page_says(
    block: Block, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    skip_without_framework(block)
    process = start(block, tmp_path)
    processes.append(process)
    out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, err) == (0, "")
    assert out == (block.output or "")


@pytest.mark.parametrize("block", [block for block in EXAMPLES if block.is_server], ids=str)
def test_the_server_takes_connections_and_ends_at_an_interrupt(
    block: Block, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    skip_without_framework(block)
    process = start(block, tmp_path)
    processes.append(process)
    line = first_line(process)
    port = re.search(r"port (\d+)$", line)
    assert port, f"a server prints its port in its first line, not {line!r}"
    with socket.create_connection(("127.0.0.1", int(port[1])), TIMEOUT) as client:
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        answer = bytearray()
        while part := client.recv(100):
            answer += part
    assert answer in (b"hello", b"")  # an echo, or a sink
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT)
    assert re.sub(r"\A(Traceback .*^KeyboardInterrupt\n)?", "", err, flags=re.MULTILINE | re.DOTALL) == ""
    assert process.returncode in (0, -signal.SIGINT)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    assert process.stderr
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        assert selector.select(TIMEOUT), "it printed nothing"
    return process.stdout.readline() or process.stderr.read()


@pytest.mark.parametrize(("block", "command"), COMMANDS, ids=str)
def test_the_command_is_one_that_the_command_line_takes(block: Block, command: str) -> None:
    words = shlex.split(command)
    words = [sys.executable, *words[words.index("-m") :], "--help"]  # --help: arguments are checked, nothing runs
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (done.returncode, done.stderr) == (0, ""), f"{block}: {command}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = FENCE.sub("", page.read_text("utf-8"))
    for link in LINK.findall(prose):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    missing = [
        page.name for page in (ROOT / "docs").glob("*.md") if page.name != "index.md" and page.name not in index
    ]
    assert not missing


def test_the_reference_names_all_that_is_public() -> None:
    reference = (ROOT / "docs" / "reference.md").read_text("utf-8")
    missing = [name for name in eventengine.__all__ if not re.search(rf"`{name}\b", reference)]
    assert not missing
