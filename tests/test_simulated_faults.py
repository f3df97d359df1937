"""What a test can do to the simulated network by script, and what the conditions do to it by chance."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from eventengine import (
    Endpoint,
    EndpointConfig,
    ResolvedAddress,
    ResourceQuota,
    SliceBuffer,
    SRVRecord,
    Status,
    StatusCode,
    connect_target,
)
from eventengine.testing import Conditions, SimulatedEventEngine
from simulated_peers import SERVER, Sink, connect, connected, write

Result = Endpoint | Status


def outcome(result: object) -> tuple[StatusCode, int | None]:
    assert isinstance(result, Status), result
    return result.code, result.errno


# Connects and accepts.


def test_a_connect_is_refused_hangs_or_is_admitted_as_the_test_says() -> None:
    with SimulatedEventEngine() as engine:
        sink = Sink(engine)
        engine.network.refuse(SERVER)
        assert outcome(connect(engine)) == (StatusCode.UNAVAILABLE, errno.ECONNREFUSED)
        engine.network.hang(SERVER)
        assert outcome(connect(engine, timeout=7.0)) == (StatusCode.DEADLINE_EXCEEDED, None)
        assert engine.now == 7.0
        engine.network.admit(SERVER)
        connected(engine).close()
        sink.close()


def test_a_connect_takes_the_latency_and_a_shorter_timeout_ends_it_first() -> None:
    with SimulatedEventEngine(0, Conditions(latency=(0.2, 0.2))) as engine:
        sink = Sink(engine)
        endpoint = connected(engine)
        assert engine.now == 0.2
        assert outcome(connect(engine, timeout=0.1)) == (StatusCode.DEADLINE_EXCEEDED, None)
        engine.run_until_idle()
        assert engine.network.sockets == 3, "the listening one and both ends of the first connection"
        endpoint.close()
        sink.close()


def test_a_connect_that_finds_the_backlog_full_waits_for_a_place() -> None:
    with SimulatedEventEngine() as engine:
        sink = Sink(engine, config=EndpointConfig(backlog=0))
        results: list[Result] = []
        allocator = ResourceQuota().create_memory_allocator("clients")
        for _ in range(3):
            engine.connect(results.append, SERVER, EndpointConfig(), allocator, 10.0)
        engine.run_until_idle()
        assert len(sink.streams) == 3
        for endpoint in results:
            assert not isinstance(endpoint, Status)
            endpoint.close()
        assert any("waits for a place" in line.text for line in engine.trace)
        sink.close()


def test_without_a_descriptor_a_connect_fails_and_a_listener_tries_again_after_a_second() -> None:
    with SimulatedEventEngine() as engine:
        sink = Sink(engine)
        with engine.network.no_descriptors_left():
            assert outcome(connect(engine)) == (StatusCode.RESOURCE_EXHAUSTED, errno.EMFILE)
        with ExitStack() as stack:

            def took_the_last(sock: object) -> None:
                stack.enter_context(engine.network.no_descriptors_left())

            endpoint = connected(engine, config=EndpointConfig(socket_hook=took_the_last))
            engine.advance(0.0)
            assert sink.streams == []
        engine.run_until(lambda: sink.streams)
        assert engine.now == 1.0
        endpoint.close()
        sink.close()


def test_accepts_that_fail_by_chance_lose_only_connections_that_broke() -> None:
    with SimulatedEventEngine(4, Conditions(fail_accept=0.5)) as engine:
        sink = Sink(engine)
        served = 0
        for client in [connect(engine) for _ in range(40)]:
            if isinstance(client, Status):  # it broke before its own side was told
                assert outcome(client) == (StatusCode.UNAVAILABLE, errno.ECONNRESET)
                continue
            engine.advance(10.0)
            statuses = write(client, b"x")
            engine.run_until_idle()
            served += statuses[0].ok
            client.close()
        engine.run_until_idle()
        assert 0 < served < 40
        assert len(sink.received) == served
        assert any(line.text.startswith("fail_accept") for line in engine.trace)
        sink.close()


def test_listeners_that_share_a_port_share_its_connections_by_chance() -> None:
    with SimulatedEventEngine(1, Conditions(shuffle=True)) as engine:
        sinks = [Sink(engine) for _ in range(2)]
        for _ in range(20):
            connected(engine).close()
        engine.run_until_idle()
        shares = [len(sink.streams) for sink in sinks]
        assert sum(shares) == 20
        assert min(shares) >= 3
        for sink in sinks:
            sink.close()


# Bytes.


def test_bytes_come_in_pieces_of_the_sizes_that_the_conditions_say() -> None:
    with SimulatedEventEngine(0, Conditions(piece=(3, 3))) as engine:
        sink = Sink(engine)
        client = connected(engine)
        write(client, b"abcdefgh")
        engine.run_until_idle()
        assert sink.streams == [[b"abc", b"def", b"gh"]]
        client.close()
        sink.close()


def test_sends_that_take_but_a_part_lose_nothing() -> None:
    data = bytes(range(256)) * 100
    with SimulatedEventEngine(0, Conditions(short_write=0.9)) as engine:
        sink = Sink(engine)
        client = connected(engine)
        statuses = write(client, data)
        assert statuses == []
        engine.run_until_idle()
        assert statuses == [Status.OK]
        assert sink.received == data
        client.close()
        sink.close()


def test_a_write_waits_while_the_connection_holds_what_its_buffers_take() -> None:
    config = EndpointConfig(send_buffer_size=1000, receive_buffer_size=500)
    with SimulatedEventEngine() as engine:
        accepted: list[Endpoint] = []
        listener = engine.create_listener(
            lambda endpoint, _: accepted.append(endpoint), lambda _: None, config, ResourceQuota()
        )
        listener.bind(SERVER)
        listener.start()
        client = connected(engine, config=config)
        assert write(client, bytes(1500)) == [Status.OK]
        waiting = write(client, b"one more")
        engine.advance(100.0)
        assert waiting == []
        accepted[0].close()
        engine.run_until_idle()
        assert outcome(waiting[0]) == (StatusCode.UNAVAILABLE, errno.ECONNRESET), "closed over unread bytes"
        client.close()
        listener.close()


def test_a_connection_that_is_held_is_overtaken_and_loses_nothing() -> None:
    with SimulatedEventEngine() as engine:
        sink = Sink(engine)
        first, second = connected(engine), connected(engine)
        engine.network.connections[0].hold()
        write(first, b"first")
        write(second, b"second")
        engine.run_until_idle()
        assert sink.streams == [[], [b"second"]]
        engine.network.connections[0].release()
        engine.run_until_idle()
        assert sink.streams == [[b"first"], [b"second"]]
        first.close()
        second.close()
        sink.close()


def test_connections_overtake_one_another_by_chance_and_none_itself() -> None:
    orders: set[tuple[int, ...]] = set()
    for seed in range(20):
        with SimulatedEventEngine(seed, Conditions(latency=(0.0, 1.0), piece=(1, 2))) as engine:
            sink = Sink(engine)
            clients = [connected(engine) for _ in range(3)]
            for n, client in enumerate(clients):
                write(client, bytes([n]) * 4)
            engine.run_until_idle()
            arrived = [int(line.subject[1:-1]) for line in engine.trace if "bytes arrive" in line.text]
            assert sorted(b"".join(stream) for stream in sink.streams) == [bytes([n]) * 4 for n in range(3)]
            for client in clients:
                client.close()
            sink.close()
        orders.add(tuple(dict.fromkeys(arrived)))
    assert len(orders) == 6


# Broken connections.


@pytest.mark.parametrize("number", [errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH])
def test_a_connection_that_fails_is_told_at_both_ends_with_the_errno(number: int) -> None:
    with SimulatedEventEngine() as engine:
        sink = Sink(engine)
        client = connected(engine)
        engine.run_until(lambda: sink.streams)
        engine.network.connections[0].fail(number)
        engine.run_until_idle()
        assert [outcome(end) for end in sink.ends] == [(StatusCode.UNAVAILABLE, number)]
        statuses = write(client, b"in vain")
        engine.run_until_idle()
        assert outcome(statuses[0]) == (StatusCode.UNAVAILABLE, number)
        client.close()
        sink.close()
    assert engine.network.connections == []


def test_a_half_open_connection_tells_nobody() -> None:
    with SimulatedEventEngine() as engine:
        sink = Sink(engine)
        client = connected(engine)
        engine.run_until(lambda: sink.streams)
        engine.network.connections[0].cut()
        assert write(client, b"into the void") == [Status.OK]
        client.close()
        engine.advance(86400.0)
        assert (sink.received, sink.ends) == (b"", [])
        sink.close()
        engine.run_until_idle()
        assert outcome(sink.ends[0]) == (StatusCode.CANCELLED, None)


def test_keepalive_finds_a_half_open_connection() -> None:
    config = EndpointConfig(keepalive=True, keepalive_idle=30, keepalive_interval=5, keepalive_count=4)
    with SimulatedEventEngine() as engine:
        sink = Sink(engine, config=config)
        client = connected(engine)
        engine.run_until(lambda: sink.streams)
        engine.network.connections[0].cut()
        engine.run_until(lambda: sink.ends)
        assert engine.now == 50.0
        assert outcome(sink.ends[0]) == (StatusCode.UNAVAILABLE, errno.ETIMEDOUT)
        client.close()
        sink.close()


def test_a_half_open_connection_that_was_closed_leaves_nothing_to_wait_for() -> None:
    with SimulatedEventEngine() as engine:
        sink = Sink(engine, config=EndpointConfig(keepalive=True))
        client = connected(engine)
        engine.run_until(lambda: sink.streams)
        engine.network.connections[0].cut()
        client.close()
        sink.close()
        engine.run_until_idle()
        assert engine.now == 0.0


def test_the_user_timeout_finds_a_half_open_connection_when_something_was_written() -> None:
    with SimulatedEventEngine() as engine:
        sink = Sink(engine)
        client = connected(engine, config=EndpointConfig(user_timeout=12.5))
        statuses: list[Status] = []
        engine.network.connections[0].cut()
        engine.advance(100.0)
        assert write(client, b"unacknowledged") == [Status.OK]
        assert not client.read(statuses.append, SliceBuffer())
        engine.run_until(lambda: statuses)
        assert engine.now == 112.5
        assert outcome(statuses[0]) == (StatusCode.UNAVAILABLE, errno.ETIMEDOUT)
        client.close()
        sink.close()


# The quota.


def test_a_quota_that_fills_by_script_holds_the_reader_back_until_there_is_room() -> None:
    quota = ResourceQuota("small", memory="64KiB")
    with SimulatedEventEngine() as engine:
        sink = Sink(engine, quota=quota)
        client = connected(engine)
        engine.run_until(lambda: sink.streams)
        engine.network.fill_quotas(8.0)
        assert quota.memory.used == 64 * 1024
        write(client, b"waits")
        engine.advance(7.9)
        assert sink.received == b""
        engine.run_until_idle()
        assert sink.received == b"waits"
        assert engine.now == 8.0
        client.close()
        sink.close()


def test_an_end_is_told_though_the_quota_is_full() -> None:
    quota = ResourceQuota("small", memory="64KiB")
    with SimulatedEventEngine() as engine:
        sink = Sink(engine, quota=quota)
        client = connected(engine)
        engine.run_until(lambda: sink.streams)
        engine.network.fill_quotas(8.0)
        client.close()
        engine.run_until(lambda: sink.ends)
        assert engine.now == 0.0
        sink.close()


def test_a_quota_that_fills_by_chance_loses_nothing() -> None:
    quota = ResourceQuota("small", memory="64KiB")
    data = bytes(range(256)) * 800
    with SimulatedEventEngine(0, Conditions(piece=(1, 20_000), fill_quota=0.5)) as engine:
        sink = Sink(engine, quota=quota)
        client = connected(engine)
        write(client, data)
        engine.run_until_idle()
        assert sink.received == data
        assert engine.now >= 1.0, "it was full for a while"
        client.close()
        sink.close()
    assert quota.memory.used == 0


# Names.


def look_up(
    engine: SimulatedEventEngine, begin: Callable[[Any, Callable[[Any], None]], None], **options: Any
) -> Any:
    results: list[Any] = []
    resolver = engine.get_dns_resolver(**options)
    begin(resolver, results.append)
    engine.run_until(lambda: results)
    resolver.close()
    return results[0]


def by_host(name: str) -> Callable[[Any, Callable[[Any], None]], None]:
    return lambda resolver, on_resolve: resolver.lookup_hostname(on_resolve, name)


def test_names_are_what_the_test_says() -> None:
    record = SRVRecord("db.example", 5432, 1, 1)
    with SimulatedEventEngine() as engine:
        names = engine.network.names
        names.add("db.example", "10.0.0.5", "fd00::5")
        names.add_services("_pg._tcp.example", record)
        names.add_texts("db.example", "a text")
        names.fail("broken.example", Status(StatusCode.UNAVAILABLE, "SERVFAIL"))
        names.silence("silent.example")
        found = [ResolvedAddress.tcp("10.0.0.5", 1), ResolvedAddress.tcp("fd00::5", 1)]
        assert look_up(engine, by_host("db.example:1")) == found
        assert look_up(engine, lambda resolver, done: resolver.lookup_srv(done, "_pg._tcp.example")) == [record]
        assert look_up(engine, lambda resolver, done: resolver.lookup_txt(done, "db.example")) == ["a text"]
        assert look_up(engine, by_host("other.example:1")).code is StatusCode.NOT_FOUND
        assert look_up(engine, by_host("broken.example:1")).message == "SERVFAIL"
        assert engine.now == 0.0
        assert look_up(engine, by_host("silent.example:1")).code is StatusCode.DEADLINE_EXCEEDED
        assert engine.now == 30.0


def test_another_dns_server_knows_other_names() -> None:
    with SimulatedEventEngine() as engine:
        engine.network.add_dns_server(ResolvedAddress.parse("10.0.0.53:53")).add("a.example", "10.0.0.9")
        assert look_up(engine, by_host("a.example:1")).code is StatusCode.NOT_FOUND
        assert look_up(engine, by_host("a.example:1"), dns_server="10.0.0.53") == [
            ResolvedAddress.tcp("10.0.0.9", 1)
        ]
        assert look_up(engine, by_host("a.example:1"), dns_server="10.0.0.54").code is StatusCode.UNAVAILABLE


def test_lookups_fail_or_stay_unanswered_by_chance() -> None:
    codes: set[StatusCode | None] = set()
    with SimulatedEventEngine(1, Conditions(latency=(0.0, 0.5), fail_lookup=0.5)) as engine:
        for n in range(20):
            engine.network.names.add(f"{n}.example", "10.0.0.5")
            found = look_up(engine, by_host(f"{n}.example:1"))
            codes.add(found.code if isinstance(found, Status) else None)
    assert codes == {None, StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED}


def test_happy_eyeballs_to_the_tick() -> None:
    """The first of a name's addresses is silent; the next is tried 250 ms later (RFC 8305), and answers at once."""
    results: list[Result] = []
    with SimulatedEventEngine() as engine:
        sink = Sink(engine)
        engine.network.names.add("site.example", "fd00::2", "10.0.0.2")
        engine.network.hang(ResolvedAddress.parse("[fd00::2]:80"))
        connect_target(
            engine,
            results.append,
            "site.example:80",
            EndpointConfig(),
            ResourceQuota().create_memory_allocator("client"),
            timeout=5.0,
        )
        engine.run_until(lambda: results)
        assert engine.now == 0.25
        assert not isinstance(results[0], Status)
        assert results[0].peer_address == SERVER
        results[0].close()
        sink.close()
        engine.run_until_idle()
        assert engine.network.sockets == 0
