"""The simulated engine: virtual time, chance that comes from the seed alone, traces and their replay."""

from __future__ import annotations

import pytest

from eventengine import EndpointConfig, ResolvedAddress, ResourceQuota, Status, StatusCode
from eventengine.testing import CALM, ROUGH, Conditions, SimulatedEventEngine, Trace
from eventengine.testing.simulated import simulation
from simulated_peers import SERVER, Sink, connect, connected, write

DATA = bytes(range(256)) * 40


def send_by(engine: SimulatedEventEngine) -> tuple[list[bytes], list[Status]]:
    """Three clients send to one server, as far as the network lets them; what came, and how the streams ended."""
    quota = ResourceQuota("small", memory="16KiB")
    with engine:
        sink = Sink(engine, quota=quota)
        clients = [connect(engine) for _ in range(3)]
        for client in clients:
            if not isinstance(client, Status):
                write(client, DATA)
        engine.advance(20.0)
        for client in clients:
            if not isinstance(client, Status):
                client.close()
        engine.advance(20.0)
        sink.close()
        engine.run_until_idle()
    assert engine.network.sockets == 0
    assert quota.memory.used == 0
    return [b"".join(stream) for stream in sink.streams], sink.ends


# Time.


def test_timers_run_in_their_order_and_no_true_time_passes() -> None:
    ran: list[tuple[str, float]] = []
    with SimulatedEventEngine() as engine:
        for name, delay in (("late", 86400.0), ("early", 1.5), ("early, too", 1.5), ("at once", 0.0)):
            engine.run_after(delay, lambda name=name: ran.append((name, engine.now)))  # type: ignore[misc]
        assert ran == []
        engine.advance(1.5)
        assert ran == [("at once", 0.0), ("early", 1.5), ("early, too", 1.5)]
        engine.advance(1.0)
        assert engine.now == 2.5
        engine.run_until_idle(limit=100_000.0)
        assert ran[3:] == [("late", 86400.0)]
        assert engine.now == 86400.0


def test_time_does_not_pass_for_what_is_done_at_once() -> None:
    with SimulatedEventEngine() as engine:
        sink = Sink(engine)
        client = connected(engine)
        assert write(client, DATA) == [Status.OK]
        client.close()
        engine.advance(0.0)
        assert sink.received == DATA
        assert engine.now == 0.0
        sink.close()


def test_run_until_stops_as_soon_as_it_has_happened() -> None:
    ran: list[int] = []
    with SimulatedEventEngine() as engine:
        for n in range(3):
            engine.run_after(float(n), lambda n=n: ran.append(n))  # type: ignore[misc]
        engine.run_until(lambda: len(ran) == 2)
        assert engine.now == 1.0


def test_what_does_not_happen_is_told_with_the_reason() -> None:
    with SimulatedEventEngine() as engine:
        with pytest.raises(AssertionError, match="nothing is under way any more"):
            engine.run_until(lambda: False)
        engine.run_after(100.0, lambda: None)
        with pytest.raises(AssertionError, match="5 s have passed"):
            engine.run_until(lambda: False, limit=5)


def test_a_timer_that_sets_itself_anew_does_not_keep_the_test_for_ever() -> None:
    with SimulatedEventEngine() as engine:

        def again() -> None:
            engine.run_after(1.0, again)

        again()
        with pytest.raises(AssertionError, match="sets itself anew"):
            engine.run_until_idle(limit=50.0)
        assert 50.0 <= engine.now <= 51.0


def test_a_closure_that_runs_itself_anew_does_not_keep_the_test_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "MOST_STEPS", 100)
    with SimulatedEventEngine() as engine:
        ran: list[int] = []

        def again() -> None:
            ran.append(1)
            if len(ran) < 1000:
                engine.run(again)

        again()
        with pytest.raises(AssertionError, match="time stands still"):
            engine.advance(1.0)
        assert 100 <= len(ran) < 1000


def test_what_a_callback_raises_is_raised_where_time_passes_and_the_engine_goes_on() -> None:
    ran: list[str] = []

    def fail() -> None:
        raise LookupError("in a callback")

    with SimulatedEventEngine() as engine:
        engine.run(fail)
        engine.run(lambda: ran.append("after"))
        with pytest.raises(LookupError, match="in a callback"):
            engine.run_until_idle()
        engine.run_until_idle()
        assert ran == ["after"]


def test_time_cannot_pass_within_a_callback() -> None:
    with SimulatedEventEngine() as engine:
        engine.run(lambda: engine.advance(1.0))
        with pytest.raises(RuntimeError, match="time is passing already"):
            engine.run_until_idle()


def test_engines_of_one_simulation_share_time_and_network() -> None:
    with SimulatedEventEngine(3, ROUGH) as server, SimulatedEventEngine(simulation=server.simulation) as client:
        sink = Sink(server)
        endpoint = connect(client)
        assert client.now == server.now > 0.0
        if not isinstance(endpoint, Status):
            endpoint.close()
        sink.close()


# Chance.


def test_the_same_seed_has_the_same_course_and_another_seed_another() -> None:
    traces = []
    for seed in (1, 1, 2):
        engine = SimulatedEventEngine(seed, ROUGH)
        send_by(engine)
        traces.append(str(engine.trace))
    assert traces[0] == traces[1] != traces[2]


def test_a_trace_is_replayed_from_its_text_whatever_the_seed_and_conditions() -> None:
    for seed in range(10):
        engine = SimulatedEventEngine(seed, ROUGH)
        outcome = send_by(engine)
        replayed = SimulatedEventEngine(seed + 1, CALM, replay=str(engine.trace))
        assert send_by(replayed) == outcome
        assert str(replayed.trace) == str(engine.trace)


def test_a_line_that_is_taken_out_of_a_trace_is_a_fault_that_does_not_happen() -> None:
    engine = SimulatedEventEngine(0, Conditions(refuse=1.0))
    with engine:
        assert isinstance(connect(engine), Status)
    lines = [line for line in engine.trace if "refuse [1] = yes" not in line.text]
    assert len(lines) == len(engine.trace) - 1
    with SimulatedEventEngine(replay=Trace(lines)) as replayed:
        sink = Sink(replayed)
        connected(replayed).close()
        sink.close()


def test_a_trace_is_read_as_it_was_written_and_nothing_else_is() -> None:
    engine = SimulatedEventEngine(5, ROUGH)
    send_by(engine)
    assert str(Trace.parse(f"\n{engine.trace}\n")) == str(engine.trace)
    with pytest.raises(ValueError, match="'what is this' is no line of a trace"):
        Trace.parse("what is this")


def test_an_error_that_leaves_the_engine_is_told_with_the_seed_and_what_happened_last() -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        _fail_on(SimulatedEventEngine(77))
    assert "seed 77" in raised.value.__notes__[0]
    assert "is connected" in raised.value.__notes__[0]


def _fail_on(engine: SimulatedEventEngine) -> None:
    with engine:
        sink = Sink(engine)
        connected(engine).close()
        sink.close()
        raise ZeroDivisionError


def test_with_every_fault_that_there_is_each_stream_is_a_prefix_of_what_was_sent() -> None:
    ends: set[StatusCode] = set()
    whole = 0
    for seed in range(60):
        engine = SimulatedEventEngine(seed, ROUGH)
        streams, statuses = send_by(engine)
        assert len(streams) == len(statuses) <= 3
        assert all(DATA.startswith(stream) for stream in streams)
        ends |= {status.code for status in statuses}
        whole += streams == [DATA] * 3
    # CANCELLED is that of half-open connections: nothing ended them but the server itself.
    assert ends == {StatusCode.OUT_OF_RANGE, StatusCode.UNAVAILABLE, StatusCode.CANCELLED}
    assert 0 < whole < 60


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"latency": (1.0, 0.5)}, "the smaller one first"),
        ({"piece": (0, 5)}, "1 or more"),
        ({"reset": 1.5}, "reset is 1.5; a chance is a number from 0 to 1"),
        ({"reset": 2}, "reset is 2; a chance is a number from 0 to 1"),
        ({"cut": "often"}, "cut is 'often'; a chance is a number from 0 to 1"),
        ({"buffer": 0}, "buffer is 0"),
    ],
)
def test_conditions_that_are_none_are_told(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Conditions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"seed": ROUGH}, "seed must be an int, not Conditions; write conditions="),
        ({"seed": "7"}, "seed must be an int, not str$"),
        ({"conditions": 0.5}, "conditions must be Conditions, not float"),
        ({"simulation": 7}, "simulation must be a Simulation, not int; that of another engine is its attribute"),
    ],
)
def test_an_engine_that_would_be_calm_by_mistake_is_told(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(TypeError, match=text):
        SimulatedEventEngine(**wrong)  # type: ignore[arg-type]


def test_a_fault_that_would_happen_to_nobody_is_told() -> None:
    with SimulatedEventEngine() as engine:
        network = engine.network
        for call in (network.refuse, network.hang, network.admit, network.add_dns_server):
            with pytest.raises(TypeError, match="address must be a ResolvedAddress, not str"):
                call("10.0.0.2:80")  # type: ignore[operator]
        with pytest.raises(TypeError, match="seconds must be a number of seconds, not str"):
            network.fill_quotas("5")  # type: ignore[arg-type]


# What it is not.


def test_it_takes_no_descriptor_of_the_system() -> None:
    import socket

    from eventengine import StatusError
    from eventengine.engine import ListenerSupportsFileDescriptor, SupportsFileDescriptor

    left, right = socket.socketpair()
    with left, right, SimulatedEventEngine() as engine:
        allocator = ResourceQuota().create_memory_allocator("test")
        with pytest.raises(StatusError, match="no descriptors"):
            engine.endpoint_from_socket(left, allocator)
        sink = Sink(engine)
        assert sink.listener.query_extension(ListenerSupportsFileDescriptor) is None
        endpoint = connected(engine)
        assert endpoint.query_extension(SupportsFileDescriptor) is None
        endpoint.close()
        sink.close()
        assert left.fileno() >= 0


def test_a_port_is_free_again_when_its_listener_was_closed() -> None:
    with SimulatedEventEngine() as engine:
        for _ in range(2):
            Sink(engine, config=EndpointConfig(reuse_port=False)).close()
        status = connect(engine, ResolvedAddress.parse("10.0.0.2:80"))
        assert isinstance(status, Status)
        assert status.code is StatusCode.UNAVAILABLE
    assert SERVER.port == 80
