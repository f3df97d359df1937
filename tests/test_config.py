"""`EndpointConfig`: what it takes and what it refuses."""

from __future__ import annotations

import dataclasses
import pickle
import socket

import pytest

from eventengine.config import EndpointConfig

LIMITS: dict[str, tuple[float, float, str]] = {
    "keepalive_idle": (1, 32767, "whole seconds from 1 to 32767"),
    "keepalive_interval": (1, 32767, "whole seconds from 1 to 32767"),
    "keepalive_count": (1, 127, "a number from 1 to 127"),
    "user_timeout": (0.001, 2147483, "seconds from 0.001 to 2147483"),
    "send_buffer_size": (1, 2**31 - 1, "bytes from 1 to 2**31 - 1"),
    "receive_buffer_size": (1, 2**31 - 1, "bytes from 1 to 2**31 - 1"),
    "dscp": (0, 63, "a code point from 0 to 63"),
    "backlog": (0, 65535, "a number from 0 to 65535"),
}
NUMBERS = sorted(LIMITS)
OPTIONAL = sorted({*LIMITS, "socket_hook"} - {"backlog"})


def make(name: str, value: object) -> EndpointConfig:
    return EndpointConfig(**{name: value})  # type: ignore[arg-type]


def test_every_field_has_a_default_as_in_grpc() -> None:
    assert dataclasses.asdict(EndpointConfig()) == {
        "keepalive": False,
        "keepalive_idle": None,
        "keepalive_interval": None,
        "keepalive_count": None,
        "user_timeout": None,
        "send_buffer_size": None,
        "receive_buffer_size": None,
        "dscp": None,
        "reuse_port": True,
        "backlog": 4096,
        "socket_hook": None,
    }


@pytest.mark.parametrize("name", NUMBERS)
def test_the_ends_of_a_range_are_allowed(name: str) -> None:
    low, high, _ = LIMITS[name]
    assert getattr(make(name, low), name) == low
    assert getattr(make(name, high), name) == high


@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_out_of_range_is_refused_by_name_value_and_what_is_allowed(name: str) -> None:
    low, high, allowed = LIMITS[name]
    step = 0.0005 if name == "user_timeout" else 1
    for bad in (low - step, high + step, -(2**40), float("inf"), float("nan")):
        with pytest.raises(ValueError, match="it must be") as caught:
            make(name, bad)
        assert str(caught.value) == f"{name} is {bad}; it must be {allowed}"


@pytest.mark.parametrize("bad", ["1", b"1", True, [1]], ids=repr)
@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_is_refused_by_name_and_type(name: str, bad: object) -> None:
    with pytest.raises(TypeError, match="must be") as caught:
        make(name, bad)
    assert str(caught.value) == f"{name} must be {LIMITS[name][2]}, not {type(bad).__name__}"


@pytest.mark.parametrize(
    ("name", "bad"),
    [(name, 1.5) for name in NUMBERS if name != "user_timeout"]
    + [(name, 2.0) for name in ("backlog", "dscp", "receive_buffer_size", "send_buffer_size")],
)
def test_what_the_system_would_refuse_or_cut_is_refused_when_the_config_is_made(name: str, bad: float) -> None:
    with pytest.raises((TypeError, ValueError), match=name):
        make(name, bad)


@pytest.mark.parametrize("name", ["keepalive_idle", "keepalive_interval", "user_timeout"])
def test_seconds_may_be_floats(name: str) -> None:
    assert getattr(make(name, 30.0), name) == 30.0


def test_a_user_timeout_may_be_a_fraction_of_a_second() -> None:
    assert EndpointConfig(user_timeout=0.25).user_timeout == 0.25


@pytest.mark.parametrize("name", OPTIONAL)
def test_none_leaves_the_default_of_the_system(name: str) -> None:
    assert getattr(make(name, None), name) is None


def test_a_backlog_has_no_default_of_the_system() -> None:
    with pytest.raises(TypeError, match="backlog must be a number from 0 to 65535, not NoneType"):
        make("backlog", None)


@pytest.mark.parametrize("bad", [1, "hook", object()], ids=["a number", "a string", "an object"])
def test_a_hook_that_cannot_be_called_is_refused_by_its_type(bad: object) -> None:
    with pytest.raises(TypeError, match=f"socket_hook must be callable, not {type(bad).__name__}"):
        make("socket_hook", bad)


def test_a_hook_is_kept_as_it_is() -> None:
    assert EndpointConfig(socket_hook=socket.socket.fileno).socket_hook is socket.socket.fileno


@pytest.mark.parametrize("name", ["dscp", "more"])
def test_a_config_does_not_change(name: str) -> None:
    config = EndpointConfig(dscp=10)
    with pytest.raises((AttributeError, TypeError)):
        setattr(config, name, 20)
    assert config == EndpointConfig(dscp=10)


def test_fields_are_given_by_name() -> None:
    with pytest.raises(TypeError, match="positional"):
        EndpointConfig(True)  # type: ignore[misc]


def test_a_name_that_is_no_option_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'keep_alive'"):
        make("keep_alive", True)


def test_configs_are_equal_when_all_fields_are() -> None:
    assert EndpointConfig(dscp=10, backlog=5) == EndpointConfig(backlog=5, dscp=10)
    assert EndpointConfig(dscp=10) != EndpointConfig(dscp=11)
    assert len({EndpointConfig(dscp=10), EndpointConfig(dscp=10)}) == 1


def test_a_changed_copy_is_checked_again() -> None:
    config = dataclasses.replace(EndpointConfig(dscp=10), backlog=1)
    assert (config.dscp, config.backlog) == (10, 1)
    with pytest.raises(ValueError, match="dscp is 64"):
        dataclasses.replace(config, dscp=64)


def test_a_config_survives_pickling() -> None:
    config = EndpointConfig(dscp=10, user_timeout=1.5, reuse_port=False)
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize("name", ["keepalive", "reuse_port"])
def test_a_switch_is_true_or_false_and_no_number_of_seconds(name: str) -> None:
    for bad, kind in ((30, "int"), ("no", "str"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"{name} must be True or False, not {kind}"):
            make(name, bad)
