"""`ResourceQuota`: one bound for memory, connections and threads."""

from __future__ import annotations

import gc
import inspect
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from eventengine.memory import MemoryRequest
from eventengine.quota import ResourceQuota, as_quota, describe_limits
from eventengine.status import StatusCode, StatusError
from together import run_script, run_together


def kind(value: object) -> str:
    return type(value).__name__


def exhausted(error: pytest.ExceptionInfo[StatusError]) -> str:
    assert error.value.status.code is StatusCode.RESOURCE_EXHAUSTED
    return error.value.status.message


@pytest.fixture
def no_collections() -> Iterator[None]:
    """Garbage is collected when the test says so."""
    gc.disable()
    yield
    gc.enable()


def test_a_quota_of_nothing_counts_without_limits() -> None:
    quota = ResourceQuota()
    assert (quota.name, quota.memory.size, quota.connections.size, quota.threads.size) == ("", None, None, None)
    assert (quota.memory.used, quota.connections.used, quota.threads.used) == (0, 0, 0)
    quota.threads.reserve(10_000)
    assert all(quota.connections.try_take(lambda: None) for _ in range(1000))
    assert (quota.connections.used, quota.threads.used) == (1000, 10_000)


def test_a_quota_has_a_name_and_three_limits() -> None:
    quota = ResourceQuota("site", memory="64MiB", threads=8, connections=10_000)
    assert (quota.name, quota.memory.size, quota.threads.size, quota.connections.size) == (
        "site",
        64 << 20,
        8,
        10_000,
    )
    assert repr(quota) == "<ResourceQuota 'site' memory 0 of 67108864 bytes, connections 0 of 10000>"


@pytest.mark.parametrize("memory", [256, 1000, "1000", "1000B"])
def test_the_memory_is_bytes_or_a_text(memory: int | str) -> None:
    assert ResourceQuota(memory=memory).memory.size == int(str(memory).rstrip("B"))


@pytest.mark.parametrize("bad", [0, -1, "", "much", "64MB"])
def test_a_memory_that_is_no_size_is_refused(bad: int | str) -> None:
    with pytest.raises(ValueError, match="size"):
        ResourceQuota(memory=bad)


@pytest.mark.parametrize("bad", [1.5, True, b"1MiB"], ids=kind)
def test_a_memory_of_another_type_is_refused_by_it(bad: Any) -> None:
    with pytest.raises(TypeError, match=f"a size is an int of bytes or a text .* not {kind(bad)}"):
        ResourceQuota(memory=bad)


@pytest.mark.parametrize("what", ["threads", "connections"])
@pytest.mark.parametrize("bad", [0, -1])
def test_a_limit_below_1_is_refused_by_its_name_and_value(what: str, bad: int) -> None:
    with pytest.raises(ValueError, match=f"^{what} is {bad}; it must be 1 or more, or None for no limit$"):
        ResourceQuota(**{what: bad})  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["threads", "connections"])
@pytest.mark.parametrize("bad", [1.0, "8", True, [8]], ids=kind)
def test_a_limit_of_another_type_is_refused_by_its_name_and_type(what: str, bad: object) -> None:
    with pytest.raises(TypeError, match=f"{what} must be an int or None, not {kind(bad)}"):
        ResourceQuota(**{what: bad})  # type: ignore[arg-type]


def test_limits_are_given_by_name() -> None:
    with pytest.raises(TypeError, match="positional"):
        ResourceQuota("site", 1000)  # type: ignore[misc]


@pytest.mark.parametrize("name", ["memory", "connections", "threads", "name", "more"])
def test_the_parts_of_a_quota_cannot_be_exchanged(name: str) -> None:
    quota = ResourceQuota()
    with pytest.raises(AttributeError):
        setattr(quota, name, ResourceQuota())


def test_all_allocators_of_a_quota_draw_on_its_memory() -> None:
    quota, other = ResourceQuota(memory=1000), ResourceQuota(memory=1000)
    one, two = quota.create_memory_allocator("one"), quota.create_memory_allocator("two")
    assert (one.name, two.name) == ("one", "two")
    assert one.memory is two.memory is quota.memory
    one.reserve(MemoryRequest(10))
    part = two.copy(b"abc")
    assert (quota.memory.used, quota.memory.pressure, other.memory.used) == (266, 0.266, 0)
    assert repr(quota) == "<ResourceQuota '' memory 266 of 1000 bytes>"
    del part


def test_the_threads_of_a_pool_are_counted_from_its_making_to_its_shutdown() -> None:
    quota = ResourceQuota(threads=4)
    pool = quota.create_executor(3)
    assert isinstance(pool, ThreadPoolExecutor)
    assert quota.threads.used == 3
    assert pool.submit(lambda: quota.threads.used).result(60) == 3
    pool.shutdown()
    assert quota.threads.used == 0
    pool.shutdown()
    pool.shutdown(wait=False, cancel_futures=True)
    assert quota.threads.used == 0
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(int)


def test_a_pool_is_shut_down_as_any_other() -> None:
    def parameters(method: Callable[..., object]) -> list[tuple[str, object]]:
        return [(each.name, each.default) for each in inspect.signature(method).parameters.values()]

    with ResourceQuota().create_executor(1) as pool:
        assert parameters(type(pool).shutdown) == parameters(ThreadPoolExecutor.shutdown)
        assert pool.submit(lambda: threading.current_thread().name).result(60).startswith("eventengine-callbacks")


def test_a_pool_gives_its_threads_back_at_the_end_of_a_with_block() -> None:
    quota = ResourceQuota(threads=4)
    with quota.create_executor(4) as pool:
        assert list(pool.map(abs, [-1, -2])) == [1, 2]
        assert quota.threads.used == 4
    assert quota.threads.used == 0


def test_a_pool_that_is_collected_gives_its_threads_back_once() -> None:
    quota = ResourceQuota(threads=4)
    pool = quota.create_executor(3)
    pool.submit(int).result(60)
    pool.shutdown()
    quota.create_executor(2)
    del pool
    gc.collect()
    assert quota.threads.used == 0


def test_a_pool_has_no_more_threads_than_were_counted() -> None:
    quota = ResourceQuota(threads=3)
    together = threading.Barrier(3)
    with quota.create_executor(3, name="three") as pool:
        names = set(pool.map(lambda _: (together.wait(60), threading.current_thread().name)[1], range(30)))
    assert len(names) == 3
    assert all(name.startswith("three") for name in names)


def test_a_pool_beyond_the_limit_is_refused_and_nothing_is_counted() -> None:
    quota = ResourceQuota(threads=4)
    pool = quota.create_executor(3)
    with pytest.raises(StatusError) as caught:
        quota.create_executor(2)
    assert exhausted(caught) == "2 threads were asked for; 3 of the quota's 4 are in use"
    assert quota.threads.used == 3
    last = quota.create_executor(1)
    assert quota.threads.used == 4
    pool.shutdown()
    last.shutdown()
    assert quota.threads.used == 0


@pytest.mark.parametrize("bad", [0, -1])
def test_a_pool_has_at_least_one_thread(bad: int) -> None:
    quota = ResourceQuota(threads=4)
    with pytest.raises(ValueError, match=f"^{bad} threads were asked for; it must be 1 or more$"):
        quota.create_executor(bad)
    assert quota.threads.used == 0


@pytest.mark.parametrize("bad", [1.5, "2", None], ids=kind)
def test_a_pool_has_a_whole_number_of_threads(bad: Any) -> None:
    quota = ResourceQuota(threads=4)
    with pytest.raises(TypeError, match=kind(bad)):
        quota.create_executor(bad)
    gc.collect()
    assert quota.threads.used == 0


def test_many_threads_that_reserve_threads_never_get_more_than_there_are() -> None:
    quota = ResourceQuota(threads=5)
    refused: list[str] = []
    most: list[int] = []

    def work() -> None:
        for n in range(1000):
            wanted = 1 + n % 3
            try:
                quota.threads.reserve(wanted)
            except StatusError as error:
                refused.append(error.status.message)
            else:
                most.append(quota.threads.used)
                quota.threads.release(wanted)

    run_together(*[work] * 8)
    assert quota.threads.used == 0
    assert max(most) <= 5
    assert len(refused) + len(most) == 8000


def test_connections_are_taken_up_to_the_limit() -> None:
    connections = ResourceQuota(connections=2).connections
    assert [connections.try_take(lambda: None) for _ in range(3)] == [True, True, False]
    assert (connections.used, connections.size) == (2, 2)


def test_connections_are_counted_where_there_is_no_limit_and_nothing_piles_up() -> None:
    connections = ResourceQuota().connections
    for _ in range(1000):
        connections.add()
        assert connections.try_take(lambda: pytest.fail("it did not wait"))
        connections.give()
    assert len(connections._given) <= 1
    assert (connections.used, connections.size) == (1000, None)


def test_a_connection_that_is_given_back_wakes_who_waits_the_longest_once() -> None:
    connections = ResourceQuota(connections=1).connections
    woken: list[str] = []
    assert connections.try_take(lambda: pytest.fail("it did not wait"))
    for name in "abc":
        assert not connections.try_take(lambda name=name: woken.append(name))
    for _ in range(3):
        before = list(woken)
        connections.give()
        assert woken == [*before, "abc"[len(before)]]
        assert connections.used == 0
        assert connections.try_take(lambda: None)
    connections.give()
    assert woken == ["a", "b", "c"]


def test_who_was_woken_and_wants_nothing_passes_it_on() -> None:
    connections = ResourceQuota(connections=1).connections
    woken: list[str] = []
    connections.try_take(lambda: None)
    connections.try_take(lambda: (woken.append("a"), connections.wake_one()))
    connections.try_take(lambda: woken.append("b"))
    connections.give()
    assert woken == ["a", "b"]
    connections.wake_one()
    assert woken == ["a", "b"]


def test_a_wait_that_is_taken_back_is_not_woken() -> None:
    connections = ResourceQuota(connections=1).connections
    woken: list[str] = []
    waiters = [lambda name=name: woken.append(name) for name in "ab"]
    connections.try_take(lambda: None)
    for waiter in waiters:
        assert not connections.try_take(waiter)
    connections.cancel_wait(waiters[0])
    connections.cancel_wait(waiters[0])
    connections.give()
    connections.wake_one()
    assert woken == ["b"]


def test_who_took_a_connection_at_once_does_not_wait() -> None:
    connections = ResourceQuota(connections=1).connections
    assert connections.try_take(lambda: pytest.fail("it did not wait"))
    connections.give()
    connections.wake_one()
    assert connections.used == 0


def test_who_finds_a_connection_at_the_second_look_does_not_wait() -> None:
    connections = ResourceQuota(connections=1).connections
    connections.try_take(lambda: None)

    class Waiter:
        """One connection is given back just as it stands in line."""

        late = True

        def __hash__(self) -> int:
            if self.late:
                self.late = False
                connections.give()
            return 1

        def __call__(self) -> None:
            pytest.fail("it did not wait")

    assert connections.try_take(Waiter()) is True
    assert connections.used == 1
    connections.give()
    assert connections.used == 0


def test_many_threads_share_the_connections_and_no_wake_up_is_lost() -> None:
    connections = ResourceQuota(connections=3).connections
    seen: list[int] = []

    def work() -> None:
        for _ in range(400):
            while True:
                free = threading.Event()
                if connections.try_take(free.set):
                    if free.is_set():
                        connections.wake_one()
                    break
                assert free.wait(60), "a wake-up was lost"
            seen.append(connections.used)
            connections.give()

    run_together(*[work] * 8)
    assert connections.used == 0
    assert max(seen) <= 3
    assert len(seen) == 3200


@pytest.mark.usefixtures("no_collections")
def test_a_pool_in_a_cycle_gives_its_threads_back_when_it_is_collected() -> None:
    quota = ResourceQuota(threads=2)
    cycle: list[object] = [quota.create_executor(2)]
    cycle.append(cycle)
    del cycle
    assert quota.threads.used == 2
    gc.collect()
    assert quota.threads.used == 0


@pytest.mark.usefixtures("no_collections")
def test_a_quota_that_nobody_uses_is_collected_with_its_free_blocks() -> None:
    quota = ResourceQuota(memory="1MiB", threads=2, connections=2)
    parts = [quota.create_memory_allocator("").copy(bytes(1000)) for _ in range(20)]
    gone = [weakref.ref(part) for part in (quota.memory, quota.threads, quota.connections)]
    quota.create_executor(1).shutdown()
    quota.connections.try_take(lambda: None)
    parts.clear()
    del quota
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3


def test_pools_that_are_collected_while_others_are_made_do_not_hang_the_quota() -> None:
    run_script(
        """
import gc, sys, threading
from eventengine import ResourceQuota

quota = ResourceQuota(threads=1_000_000)

def work():
    for n in range(100):
        gc.set_threshold(1 + n % 20)
        cycle = [quota.create_executor(1)]
        cycle.append(cycle)
        del cycle
        quota.threads.reserve(5)
        quota.threads.release(5)
        quota.create_executor(3).shutdown()

sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
gc.collect()
assert quota.threads.used == 0, quota.threads.used
""",
        hangs_after=30,
    )


FORK = """
import os, signal, sys, threading, traceback, warnings
from eventengine import MemoryRequest, ReclamationPass, ResourceQuota, StatusError

warnings.simplefilter("ignore", DeprecationWarning)  # that a process with threads forks is what is tried here
quota = ResourceQuota(memory="64KiB", connections=1, threads=2)
allocator = quota.create_memory_allocator("")
held = [allocator.copy(bytes(1000)) for _ in range(40)]
del held[20:]
assert quota.connections.try_take(lambda: None)
woken = []
quota.memory.add_waiter(lambda: woken.append("memory"))
quota.memory.add_bulk_waiter(lambda: woken.append("much memory"))
allocator.post_reclaimer(ReclamationPass.DESTRUCTIVE, lambda sweep: woken.append("reclaimer"))
assert not quota.connections.try_take(lambda: woken.append("connections"))
locked, forked = threading.Event(), threading.Event()

def hold_the_locks():
    with quota.memory._lock, quota.connections._lock, quota.threads._lock:
        locked.set()
        forked.wait()

def use():
    assert quota.memory.used == 20 * 1024
    part = allocator.copy(b"abc")
    assert bytes(part) == b"abc"
    assert quota.memory.used == 20 * 1024 + 256
    del part
    with allocator.make_reservation(MemoryRequest(50_000)):
        assert quota.memory.pressure > 1
        assert quota.memory.try_block(1024) is None
    allocator.release(allocator.reserve(MemoryRequest(10)))
    assert quota.memory.try_block(1024) is not None
    quota.memory.resize("128KiB")
    held.clear()
    assert quota.memory.used == 0
    with quota.create_executor(2) as pool:
        assert pool.submit(abs, -1).result() == 1
        try:
            quota.create_executor(1)
        except StatusError:
            pass
        else:
            raise AssertionError("a third thread of two")
    assert quota.threads.used == 0
    assert not quota.connections.try_take(lambda: None)
    quota.connections.give()
    assert quota.connections.try_take(lambda: None)
"""


@pytest.mark.parametrize("locks_are_held", [False, True])
def test_a_child_process_can_use_a_quota_whatever_the_threads_of_its_parent_were_doing(
    locks_are_held: bool,
) -> None:
    run_script(
        FORK
        + f"""
thread = threading.Thread(target=hold_the_locks)
if {locks_are_held}:
    thread.start()
    locked.wait()
pid = os.fork()
if not pid:
    signal.alarm(20)
    try:
        use()
        assert woken == [], woken
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
_, status = os.waitpid(pid, 0)
forked.set()
if {locks_are_held}:
    thread.join()
assert os.waitstatus_to_exitcode(status) == 0
use()
assert sorted(set(woken)) == ["connections", "memory", "much memory", "reclaimer"], woken
assert len(woken) - woken.count("much memory") == 3, woken
"""
    )


@pytest.mark.parametrize("name", ["64MiB", "1024", "1.5 GiB"])
def test_a_size_is_not_taken_for_the_name_of_a_quota_without_a_limit(name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"write memory={name!r}")):
        ResourceQuota(name)


def test_a_name_is_a_text() -> None:
    with pytest.raises(TypeError, match="a quota's name is a str, not int; for a limit write memory="):
        ResourceQuota(1 << 20)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["1MiB", ResourceQuota(memory="1MiB"), ResourceQuota()])
def test_a_quota_from_which_connections_are_served_is_not_made_smaller_than_they_need(
    given: str | ResourceQuota,
) -> None:
    memory = as_quota(given, "site").memory
    size = memory.size
    with pytest.raises(
        ValueError, match="131071 bytes has no room for what is served from it; give 128 KiB or more"
    ):
        memory.resize((128 << 10) - 1)
    assert memory.size == size
    memory.resize("128KiB")
    assert memory.size == 128 << 10


@pytest.mark.parametrize(("size", "memory"), [("1MiB", 1 << 20), (1 << 20, 1 << 20), ("128KiB", 128 << 10)])
def test_a_size_is_a_quota_of_as_much_memory(size: str | int, memory: int) -> None:
    quota = as_quota(size, "site")
    assert (quota.name, quota.memory.size, quota.connections.size) == ("site", memory, None)


def test_a_quota_is_itself_one_without_a_limit_too() -> None:
    for quota in (ResourceQuota(), ResourceQuota(memory="128KiB")):
        assert as_quota(quota, "site") is quota


@pytest.mark.parametrize("least", [131_071, "127KiB", ResourceQuota(memory=131_071)])
def test_what_could_serve_no_connection_is_refused(least: Any) -> None:
    with pytest.raises(ValueError, match="has no room to serve a connection; give 128 KiB or more"):
        as_quota(least, "site")


@pytest.mark.parametrize("bad", [None, True, 1e6, b"1MiB"], ids=repr)
def test_what_is_no_quota_is_refused_by_its_type(bad: Any) -> None:
    with pytest.raises(
        TypeError, match=f'a ResourceQuota, bytes or text such as "64MiB", not {type(bad).__name__}'
    ):
        as_quota(bad, "site")


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({}, "what connections hold is counted by the quota 'site', which has no limit"),
        ({"memory": "64MiB"}, "connections are bounded by the quota 'site': 64 MiB of memory"),
        ({"memory": 1000}, "connections are bounded by the quota 'site': 1000 B of memory"),
        ({"connections": 1}, "connections are bounded by the quota 'site': 1 connection"),
        (
            {"memory": "3GiB", "connections": 2},
            "connections are bounded by the quota 'site': 3 GiB of memory and 2 connections",
        ),
    ],
)
def test_the_log_says_what_is_bounded(limits: dict[str, Any], said: str) -> None:
    assert describe_limits(ResourceQuota("site", **limits)) == said
