"""The mailbox of the core: nothing lost, one wake-up a batch."""

from __future__ import annotations

import threading

import pytest

from eventengine.core.mailbox import LIMIT, Mailbox
from eventengine.status import ClosedResourceError, ForkedProcessError
from manual_host import ManualHost


def make(host: ManualHost) -> Mailbox:
    box = Mailbox(host, lambda: box.drain())
    return box


def test_many_letters_wake_the_host_once() -> None:
    host = ManualHost()
    box = make(host)
    got: list[int] = []
    for n in range(100):
        box.post(lambda n=n: got.append(n))
    assert len(host.woken) == 1
    host.turn()
    assert got == list(range(100))
    assert host.woken == []


def test_a_batch_has_a_limit_and_the_rest_wakes_the_host_again() -> None:
    host = ManualHost()
    box = make(host)
    got: list[int] = []
    for n in range(LIMIT + 10):
        box.post(lambda n=n: got.append(n))
    host.turn()
    assert got == list(range(LIMIT))
    host.turn()
    assert got == list(range(LIMIT + 10))


def test_a_letter_that_is_posted_first_is_in_the_next_batch_however_many_wait() -> None:
    host = ManualHost()
    box = make(host)
    got: list[int] = []
    for n in range(2 * LIMIT):
        box.post(lambda n=n: got.append(n))
    box.post_first(lambda: got.append(-1))
    host.turn()
    assert got[:2] == [-1, 0]


def test_a_letter_posted_first_is_refused_after_close_and_was_run_if_it_closed_the_box() -> None:
    host = ManualHost()
    box = make(host)
    got: list[str] = []
    box.post_first(lambda: (box.close(), got.append("closed")))
    host.turn()
    with pytest.raises(ClosedResourceError, match="the engine was closed"):
        box.post_first(lambda: got.append("after"))
    host.turn()
    assert got == ["closed"]


def test_a_letter_that_posts_itself_does_not_hold_the_host() -> None:
    host = ManualHost()
    box = make(host)
    turns: list[int] = []

    def again() -> None:
        turns.append(1)
        box.post(again)

    box.post(again)
    for n in range(1, 6):
        host.turn()
        assert len(turns) == n


def test_a_letter_of_a_turn_needs_no_wake_up() -> None:
    host = ManualHost()
    box = make(host)
    got: list[str] = []
    box.hold()
    box.post(lambda: got.append("posted in the turn"))
    assert host.woken == []
    box.drain()
    assert got == ["posted in the turn"]


def test_an_interrupt_does_not_lose_the_letters_behind_it() -> None:
    host = ManualHost()
    box = make(host)
    got: list[str] = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    box.post(interrupt)
    box.post(lambda: got.append("behind"))
    with pytest.raises(KeyboardInterrupt):
        host.turn()
    host.turn()
    assert got == ["behind"]


def test_after_close_a_letter_is_refused_at_the_caller() -> None:
    host = ManualHost()
    box = make(host)
    got: list[str] = []
    box.post(lambda: got.append("before"))
    box.close()
    assert got == ["before"]
    with pytest.raises(ClosedResourceError, match="the engine was closed"):
        box.post(lambda: got.append("after"))
    host.turn()
    assert got == ["before"]


def test_close_runs_what_its_letters_post_only_if_it_was_before() -> None:
    host = ManualHost()
    box = make(host)
    refused: list[bool] = []

    def post_again() -> None:
        try:
            box.post(lambda: None)
        except ClosedResourceError:
            refused.append(True)

    box.post(post_again)
    box.close()
    assert refused == [True]


def test_a_letter_for_a_closed_loop_is_taken_back() -> None:
    class ClosedHost(ManualHost):
        def wake(self, function: object) -> None:
            raise ClosedResourceError("the loop was closed")

    box = make(ClosedHost())
    with pytest.raises(ClosedResourceError, match="the loop was closed"):
        box.post(lambda: pytest.fail("a letter ran that was refused"))
    box.close()


def test_in_a_child_process_a_letter_is_refused() -> None:
    host = ManualHost()
    box = make(host)
    box.post(lambda: pytest.fail("a letter of the parent ran in the child"))
    box.abandon()
    with pytest.raises(ForkedProcessError, match="make a new one in the child process"):
        box.post(lambda: None)
    host.turn()


@pytest.mark.parametrize("_round", range(50))
def test_every_letter_is_run_or_refused_when_close_meets_eight_posting_threads(_round: int) -> None:
    host = ManualHost()
    box = make(host)
    ran: list[int] = []
    taken = [0] * 8
    begun = threading.Barrier(9)

    def post(me: int) -> None:
        begun.wait()
        try:
            for n in range(10_000):
                box.post(lambda n=n: ran.append(n))
                taken[me] += 1
        except ClosedResourceError:
            pass

    threads = [threading.Thread(target=post, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    begun.wait()
    for _ in range(3):
        box.drain()
    box.close()
    for thread in threads:
        thread.join()
    assert len(ran) == sum(taken)


def test_no_letter_of_eight_threads_is_left_lying() -> None:
    woken = threading.Semaphore(0)

    class Waking(ManualHost):
        def wake(self, function: object) -> None:
            woken.release()

    box = make(Waking())
    done = threading.Semaphore(0)
    begun = threading.Barrier(8)

    def post() -> None:
        begun.wait()
        for _ in range(5_000):
            box.post(done.release)

    threads = [threading.Thread(target=post) for _ in range(8)]
    for thread in threads:
        thread.start()
    count = 0
    while count < 8 * 5_000:
        assert woken.acquire(timeout=20), f"{count} letters were run and no wake-up came for the others"
        box.drain()
        while done.acquire(blocking=False):
            count += 1
    for thread in threads:
        thread.join()
    assert count == 8 * 5_000
