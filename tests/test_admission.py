"""Uploads that ask a quota for room, on a loop that is turned by hand."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from eventengine import ClosedResourceError, ResourceQuota, admission, unsent, upload
from eventengine.admission import PATIENCE, STALLED, Admission
from eventengine.unsent import Pieces, Watcher
from eventengine.upload import Upload
from together import run_script
from turned_loop import Loop

KIB = 1 << 10


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    made = Loop()
    for module in (admission, upload, unsent):
        monkeypatch.setattr(module, "monotonic", lambda: made.now)
    monkeypatch.setattr(unsent, "COST", 0)
    return made


class Uploads:
    """Uploads on one quota, and what became of them."""

    def __init__(self, loop: Loop, size: int = 100 * KIB) -> None:
        self.loop = loop
        self.memory = ResourceQuota(memory=size).memory
        self.admission = Admission(self.memory, loop)
        self.admitted: list[str] = []
        self.cut: list[str] = []
        self.made: dict[str, Upload] = {}

    def begin(self, name: str, size: int) -> Upload:
        def on_cut() -> None:
            self.cut.append(name)
            upload.end()

        upload = self.made[name] = Upload(self.admission, on_cut)
        self.ask(name, size)
        return upload

    def ask(self, name: str, size: int, *, grows: bool = False) -> None:
        if self.made[name].ask(size, lambda: self.admitted.append(name), grows=grows):
            self.admitted.append(name)


def test_what_fits_is_let_in_at_once_and_charged_until_its_end(loop: Loop) -> None:
    uploads = Uploads(loop)
    one = uploads.begin("one", 60 * KIB)
    assert (uploads.admitted, uploads.memory.used) == (["one"], 60 * KIB)
    one.complete()
    assert uploads.memory.used == 60 * KIB
    one.end()
    one.end()
    assert uploads.memory.used == 0
    assert not uploads.memory.somebody_waits


def test_who_has_no_room_waits_until_it_is_given_back(loop: Loop) -> None:
    uploads = Uploads(loop)
    one = uploads.begin("one", 60 * KIB)
    uploads.begin("two", 60 * KIB)
    assert (uploads.admitted, uploads.memory.used) == (["one"], 60 * KIB)
    assert uploads.memory.somebody_waits
    one.end()
    loop.turn()
    assert (uploads.admitted, uploads.memory.used) == (["one", "two"], 60 * KIB)
    assert not uploads.memory.somebody_waits


def test_the_smallest_goes_first(loop: Loop) -> None:
    uploads = Uploads(loop)
    one = uploads.begin("one", 90 * KIB)
    for name, size in (("large", 90 * KIB), ("small", 20 * KIB), ("smaller", 10 * KIB)):
        uploads.begin(name, size)
    one.end()
    loop.turn()
    assert uploads.admitted == ["one", "smaller", "small"]
    assert uploads.made["large"].wanted == 90 * KIB


def test_who_has_waited_long_goes_before_smaller_ones(loop: Loop) -> None:
    uploads = Uploads(loop)
    one = uploads.begin("one", 60 * KIB)
    uploads.begin("large", 90 * KIB)
    for _ in range(int(PATIENCE)):
        loop.go(1.0)
        one.moved()
    uploads.begin("small", 20 * KIB)
    assert uploads.admitted == ["one"]  # there is room for it, but that is the large one's
    one.end()
    loop.turn()
    assert uploads.admitted == ["one", "large"]
    uploads.made["large"].end()
    loop.turn()
    assert uploads.admitted == ["one", "large", "small"]


def test_who_has_waited_long_holds_the_others_back_by_turns(loop: Loop) -> None:
    uploads = Uploads(loop)
    slow = uploads.begin("slow", 60 * KIB)
    uploads.begin("large", 90 * KIB)

    def wait(seconds: float) -> None:
        for _ in range(int(seconds)):
            loop.go(1.0)
            slow.moved()

    wait(PATIENCE)
    uploads.begin("small", 20 * KIB)
    wait(PATIENCE - 1)
    assert uploads.admitted == ["slow"]
    wait(2)
    assert uploads.admitted == ["slow", "small"]
    uploads.made["small"].end()
    wait(PATIENCE - 1)
    uploads.begin("late", 20 * KIB)
    assert uploads.admitted == ["slow", "small"]
    slow.end()
    loop.turn()
    assert uploads.admitted == ["slow", "small", "large"]


def test_who_can_never_fit_since_the_quota_was_made_smaller_is_cut(loop: Loop) -> None:
    uploads = Uploads(loop)
    uploads.begin("one", 60 * KIB).complete()
    uploads.begin("large", 90 * KIB)
    uploads.begin("small", 70 * KIB)
    uploads.memory.resize(80 * KIB)
    loop.go(0.5)
    assert uploads.cut == ["large"]
    uploads.made["one"].end()
    loop.turn()
    assert uploads.admitted == ["one", "small"]


def test_who_stalls_while_another_waits_is_cut(loop: Loop) -> None:
    uploads = Uploads(loop)
    uploads.begin("stalls", 60 * KIB)
    uploads.begin("waits", 60 * KIB)
    loop.go(STALLED + 1.0)
    assert (uploads.cut, uploads.admitted) == (["stalls"], ["stalls", "waits"])


def test_who_stalls_while_nobody_waits_is_left_alone_and_its_time_counts_from_when_one_does(loop: Loop) -> None:
    uploads = Uploads(loop)
    uploads.begin("stalls", 60 * KIB)
    loop.go(100.0)
    assert uploads.cut == []
    uploads.begin("waits", 60 * KIB)
    loop.go(STALLED - 0.5)
    assert uploads.cut == []
    loop.go(1.0)
    assert uploads.cut == ["stalls"]


def test_who_moves_is_not_cut_and_who_is_complete_neither(loop: Loop) -> None:
    uploads = Uploads(loop)
    uploads.begin("complete", 10 * KIB).complete()
    slow = uploads.begin("slow", 60 * KIB)
    uploads.begin("waits", 60 * KIB)
    for _ in range(60):
        loop.go(STALLED / 2)
        slow.moved()
    assert uploads.cut == []


def test_when_all_wait_for_more_the_one_that_holds_most_is_cut_alone(loop: Loop) -> None:
    uploads = Uploads(loop)
    uploads.begin("less", 30 * KIB)
    uploads.begin("more", 60 * KIB)
    uploads.ask("less", 10 * KIB, grows=True)
    uploads.ask("more", 10 * KIB, grows=True)
    loop.go(STALLED + 0.5)
    assert uploads.cut == ["more"]
    assert uploads.admitted == ["less", "more", "less"]
    assert uploads.memory.used == 40 * KIB


def test_of_those_who_wait_for_more_as_many_are_cut_as_it_takes_to_let_in_who_knows_its_length(loop: Loop) -> None:
    uploads = Uploads(loop)
    for number in range(6, 15):
        uploads.begin(f"grows from {number}", number * KIB)
    for number in range(6, 15):
        uploads.ask(f"grows from {number}", 5 * KIB, grows=True)
    uploads.begin("whole", 35 * KIB)
    loop.go(STALLED + 0.5)
    assert uploads.cut == ["grows from 14", "grows from 13", "grows from 12"]
    loop.turn()
    assert "whole" in uploads.admitted


def test_who_knows_its_length_and_has_a_part_is_not_cut_to_let_in_others_who_know_theirs(loop: Loop) -> None:
    uploads = Uploads(loop)
    uploads.begin("grows", 30 * KIB)
    for name in ("one", "two", "three"):
        uploads.begin(name, 10 * KIB)
    uploads.ask("grows", 50 * KIB, grows=True)
    for name in ("one", "two", "three"):
        uploads.ask(name, 40 * KIB)
    loop.go(STALLED + 0.5)
    assert uploads.cut == ["grows"]
    assert uploads.admitted[-1] == "one"
    for _ in range(40):
        loop.go(STALLED / 8)
        uploads.made["one"].moved()
    assert uploads.cut == ["grows"], "somebody moves"
    loop.go(STALLED + 0.5)
    assert uploads.cut == ["grows", "one"]
    assert uploads.admitted[-1] == "two"
    loop.go(STALLED + 0.5)
    assert uploads.cut == ["grows", "one", "two"]
    assert uploads.admitted[-1] == "three"


def test_who_knows_its_length_and_has_a_part_is_not_cut_before_who_grows_has_waited_long_enough(
    loop: Loop,
) -> None:
    uploads = Uploads(loop)
    uploads.begin("knows", 30 * KIB)
    grows = uploads.begin("grows", 50 * KIB)
    uploads.ask("knows", 60 * KIB)
    loop.go(STALLED - 0.5)
    grows.moved()
    uploads.ask("grows", 30 * KIB, grows=True)
    loop.go(1.0)
    assert uploads.cut == []
    loop.go(1.5)
    assert uploads.cut == ["grows"]


def test_of_those_who_know_their_length_one_that_has_a_part_is_cut_if_all_have_and_nobody_can_move(
    loop: Loop,
) -> None:
    uploads = Uploads(loop)
    for name, size in {"one": 30, "two": 31, "three": 29}.items():
        uploads.begin(name, size * KIB)
    for name in ("one", "two", "three"):
        uploads.ask(name, 20 * KIB)
    loop.go(STALLED + 0.5)
    assert uploads.cut == ["two"]
    assert uploads.admitted[-1] == "one"


def test_who_grows_lets_those_go_first_whose_length_is_known(loop: Loop) -> None:
    uploads = Uploads(loop)
    first = uploads.begin("first", 80 * KIB)
    uploads.begin("grows", 1 * KIB)
    uploads.ask("grows", 20 * KIB, grows=True)
    uploads.begin("whole", 80 * KIB)
    first.end()
    loop.turn()
    assert uploads.admitted == ["first", "grows", "whole"]
    uploads.made["whole"].end()
    loop.turn()
    assert uploads.admitted == ["first", "grows", "whole", "grows"]


def test_a_sixteenth_is_left(loop: Loop) -> None:
    uploads = Uploads(loop, 160 * KIB)
    uploads.begin("one", 100 * KIB)
    uploads.begin("other", 51 * KIB)
    assert uploads.admitted == ["one"]
    uploads.begin("fits", 50 * KIB)
    assert uploads.admitted == ["one", "fits"]
    assert uploads.admission.most == 150 * KIB


def test_who_waits_for_the_room_of_connections_themselves_is_cut_after_two_turns(loop: Loop) -> None:
    uploads = Uploads(loop, 160 * KIB)
    charged = 20 * KIB
    uploads.admission = Admission(uploads.memory, loop, charged=lambda: charged)
    uploads.memory.take(charged, charged)
    uploads.begin("large", 130 * KIB + 1)
    uploads.begin("fits", 130 * KIB)
    assert uploads.admitted == ["fits"]
    assert [uploads.made[name].is_too_large for name in ("large", "fits")] == [True, False]
    for _ in range(int(2 * PATIENCE / STALLED * 2)):
        loop.go(STALLED / 2)
        uploads.made["fits"].moved()
    assert uploads.cut == []
    loop.go(STALLED / 2)
    assert uploads.cut == ["large"]


def test_who_waits_while_no_connection_more_may_open_is_cut_after_two_turns_the_oldest_first(loop: Loop) -> None:
    uploads = Uploads(loop)
    full = True
    uploads.admission = Admission(uploads.memory, loop, is_full=lambda: full)
    uploads.begin("holds", 60 * KIB).complete()
    names = [f"{number}" for number in range(20)]
    for name in names:
        uploads.begin(name, 50 * KIB)
    loop.go(2 * PATIENCE)
    assert uploads.cut == []
    loop.go(0.3)
    assert uploads.cut == names[:16]
    full = False
    loop.go(2 * PATIENCE)
    assert uploads.cut == names[:16]


def test_who_waits_for_more_while_another_moves_is_cut_after_twice_as_long(loop: Loop) -> None:
    uploads = Uploads(loop)
    uploads.begin("waits for more", 30 * KIB)
    moving = uploads.begin("moves", 60 * KIB)
    uploads.ask("waits for more", 10 * KIB, grows=True)
    for _ in range(3):
        loop.go(STALLED / 2)
        moving.moved()
    assert uploads.cut == []
    for _ in range(2):
        loop.go(STALLED / 2)
        moving.moved()
    assert uploads.cut == ["waits for more"]


def test_time_in_which_the_loop_did_not_turn_counts_for_nobody(loop: Loop) -> None:
    uploads = Uploads(loop)
    uploads.begin("moves", 60 * KIB)
    uploads.begin("waits", 60 * KIB)
    loop.go(STALLED - 0.5)
    uploads.made["moves"].moved()
    loop.now += 10.0  # a handler that blocked; what arrived meanwhile was not looked at yet
    loop.go(0.5)
    assert uploads.cut == []
    loop.go(STALLED)
    assert uploads.cut == ["moves"]


def test_an_upload_that_ended_asks_for_nothing_more(loop: Loop) -> None:
    uploads = Uploads(loop)
    one = uploads.begin("one", 60 * KIB)
    one.end()
    with pytest.raises(ClosedResourceError):
        uploads.ask("one", 10 * KIB)
    assert uploads.memory.used == 0


def test_an_upload_that_nobody_ended_gives_back_when_it_is_collected(loop: Loop) -> None:
    uploads = Uploads(loop)
    uploads.begin("one", 60 * KIB).complete()
    del uploads.made["one"]
    gc.collect()
    assert uploads.memory.used == 0


def test_who_came_and_left_leaves_nothing_in_the_line(loop: Loop) -> None:
    uploads = Uploads(loop)
    uploads.begin("one", 100 * KIB)
    uploads.begin("small", 1 * KIB)
    for _ in range(1000):
        uploads.begin("large", 90 * KIB).end()
    gone = weakref.ref(uploads.begin("gone", 80 * KIB))
    uploads.made.pop("gone").end()
    for _ in range(100):
        uploads.begin("large", 90 * KIB).end()
    gc.collect()
    assert gone() is None


def test_who_leaves_the_line_lets_the_next_in(loop: Loop) -> None:
    uploads = Uploads(loop)
    one = uploads.begin("one", 60 * KIB)
    large = uploads.begin("large", 90 * KIB)
    for _ in range(int(PATIENCE)):
        loop.go(1.0)
        one.moved()
    uploads.begin("small", 20 * KIB)
    large.end()
    assert uploads.admitted == ["one", "small"]
    assert not uploads.memory.somebody_waits


def test_room_given_back_by_another_thread_is_told_by_one_letter(loop: Loop) -> None:
    uploads = Uploads(loop)
    reserved = [uploads.memory.take(10 * KIB, 10 * KIB) for _ in range(10)]
    uploads.begin("waits", 60 * KIB)

    def give_back() -> None:
        for amount in reserved:
            uploads.memory.give(amount)

    thread = threading.Thread(target=give_back)
    thread.start()
    thread.join()
    assert len(loop.letters) == 1
    assert uploads.admitted == []
    loop.turn()
    assert uploads.admitted == ["waits"]


def test_one_quota_serves_two_loops(loop: Loop) -> None:
    uploads = Uploads(loop)
    other = Uploads(Loop())
    other.memory = uploads.memory
    other.admission = Admission(uploads.memory, other.loop)
    uploads.begin("stalls", 60 * KIB)
    other.begin("waits", 60 * KIB)
    loop.go(STALLED + 0.5)
    assert uploads.cut == ["stalls"]
    other.loop.turn()
    assert other.admitted == ["waits"]


def test_nothing_is_left_on_the_loop_when_the_last_has_ended(loop: Loop) -> None:
    uploads = Uploads(loop)
    one = uploads.begin("one", 60 * KIB)
    two = uploads.begin("two", 60 * KIB)
    loop.go(1.0)
    assert len(loop.timers) == 1
    one.end()
    two.end()
    loop.go(1.0)
    assert (loop.timers, uploads.memory.used) == ([], 0)
    uploads.begin("three", 60 * KIB)
    assert len(loop.timers) == 1


def test_a_loop_that_was_closed_keeps_nobody_else_from_waiting(loop: Loop) -> None:
    uploads = Uploads(loop)
    one = uploads.begin("one", 60 * KIB)
    uploads.begin("two", 60 * KIB)
    loop.is_closed = True
    one.complete()
    uploads.memory.give(uploads.memory.take(1, 1))
    assert not uploads.memory.somebody_waits


class Written(Pieces):
    """What a Connection has not sent."""

    def __init__(self, connection: Connection, watcher: Watcher) -> None:
        super().__init__(watcher)
        self.connection = connection

    def send(self) -> None:
        self.connection.send()

    def on_cut(self) -> None:
        self.connection.on_cut()


class Connection:
    """Writes, and sends what its peer takes: `takes` bytes at each try."""

    def __init__(self, uploads: Uploads, name: str, takes: int = 0) -> None:
        self.takes = takes
        self.tries = 0
        self.left = 0
        self.is_cut = False
        self.unsent = Written(self, uploads.admission)

    def write(self, size: int) -> None:
        self.unsent.add(size)
        self.left += size
        self.send()
        self.unsent.settle()

    def send(self) -> None:
        self.tries += 1
        if n := min(self.takes, self.left):
            self.left -= n
            self.unsent.sent(n)

    def on_cut(self) -> None:
        self.is_cut = True
        self.unsent.end()


def test_what_is_sent_at_once_is_not_charged(loop: Loop) -> None:
    uploads = Uploads(loop)
    reader = Connection(uploads, "reads", takes=50 * KIB)
    for _ in range(10):
        reader.write(50 * KIB)
    assert (uploads.memory.used, uploads.memory.peak, loop.timers) == (0, 0, [])


def test_a_piece_is_charged_whole_until_its_last_byte_was_sent(loop: Loop) -> None:
    uploads = Uploads(loop)
    connection = Connection(uploads, "slow", takes=10 * KIB)
    connection.write(30 * KIB)
    connection.write(15 * KIB)
    assert uploads.memory.used == 45 * KIB  # 20 KiB of the first were sent
    connection.send()
    assert uploads.memory.used == 15 * KIB
    connection.send()
    assert uploads.memory.used == 15 * KIB
    connection.send()
    assert uploads.memory.used == 0


def test_a_piece_that_is_refused_is_not_charged(loop: Loop) -> None:
    uploads = Uploads(loop)
    connection = Connection(uploads, "slow")
    connection.unsent.add(30 * KIB)
    connection.unsent.take_back()
    connection.unsent.settle()
    assert uploads.memory.used == 0


def test_a_piece_over_which_the_connection_was_closed_is_gone_already(loop: Loop) -> None:
    uploads = Uploads(loop)
    connection = Connection(uploads, "broken")
    connection.unsent.add(30 * KIB)
    connection.unsent.end()
    connection.unsent.take_back()
    assert (uploads.memory.used, connection.unsent.held) == (0, 0)


def test_a_write_beyond_the_quota_cuts_who_takes_nothing_and_spares_who_reads(loop: Loop) -> None:
    uploads = Uploads(loop)
    silent = Connection(uploads, "takes nothing")
    reading = Connection(uploads, "reads")
    silent.write(40 * KIB)
    reading.write(40 * KIB)
    reading.takes = 20 * KIB
    loop.now += 1.0
    writer = Connection(uploads, "writes")
    writer.write(50 * KIB)
    assert (silent.is_cut, reading.is_cut, writer.is_cut) == (True, False, False)
    assert uploads.memory.used == 90 * KIB
    assert silent.tries == 2


def test_of_those_who_take_nothing_who_has_held_most_for_longest_is_cut_first(loop: Loop) -> None:
    uploads = Uploads(loop)
    connections = {}
    for name, size in (("long", 20 * KIB), ("most", 40 * KIB), ("late", 39 * KIB)):
        connections[name] = Connection(uploads, name)
        connections[name].write(size)
        loop.now += 1.0
    connections["late"].write(2 * KIB)
    assert {name for name, each in connections.items() if each.is_cut} == {"most"}


def test_who_holds_little_and_has_not_moved_for_a_moment_is_not_cut_for_who_writes_much_now(loop: Loop) -> None:
    uploads = Uploads(loop)
    little = Connection(uploads, "had no turn to read")
    little.write(2 * KIB)
    loop.go(0.02)
    much = Connection(uploads, "writes much")
    much.write(60 * KIB)
    much.takes = 50 * KIB
    much.write(50 * KIB)
    assert (little.is_cut, much.is_cut) == (False, False)
    assert uploads.memory.used <= 100 * KIB


def test_a_quota_that_is_made_smaller_is_kept_to_though_nobody_writes(loop: Loop) -> None:
    uploads = Uploads(loop)
    silent, reading = Connection(uploads, "takes nothing"), Connection(uploads, "reads")
    silent.write(40 * KIB)
    loop.now += 0.01
    reading.write(40 * KIB)
    reading.takes = 40 * KIB
    uploads.memory.resize(50 * KIB)
    loop.go(0.3)
    assert (silent.is_cut, reading.is_cut, uploads.memory.used) == (True, False, 40 * KIB)
    uploads.memory.resize(30 * KIB)
    loop.go(0.3)
    assert (reading.is_cut, reading.left, uploads.memory.used) == (False, 0, 0)


def test_a_single_write_that_is_larger_than_the_quota_cuts_its_own_connection(loop: Loop) -> None:
    uploads = Uploads(loop)
    connection = Connection(uploads, "writes much", takes=1 * KIB)
    connection.write(200 * KIB)
    assert connection.is_cut
    assert uploads.memory.used == 0


def test_who_takes_nothing_while_an_upload_waits_is_cut_and_who_takes_little_is_not(loop: Loop) -> None:
    uploads = Uploads(loop)
    silent, slow = Connection(uploads, "takes nothing"), Connection(uploads, "takes little", takes=1)
    silent.write(40 * KIB)
    slow.write(40 * KIB)
    uploads.begin("upload", 50 * KIB)
    for _ in range(3):
        loop.go(STALLED / 4)
        slow.send()
    assert uploads.admitted == []
    for _ in range(3):
        loop.go(STALLED / 4)
        slow.send()
    assert (silent.is_cut, slow.is_cut, uploads.admitted) == (True, False, ["upload"])


def test_who_could_send_and_only_was_not_told_that_is_not_cut(loop: Loop) -> None:
    uploads = Uploads(loop)
    silent, slow = Connection(uploads, "takes nothing"), Connection(uploads, "takes little")
    silent.write(40 * KIB)
    slow.write(40 * KIB)
    slow.takes = 1
    uploads.begin("upload", 50 * KIB)
    loop.go(STALLED + 0.5)
    assert (silent.is_cut, slow.is_cut, uploads.admitted) == (True, False, ["upload"])


class TwoLoops:
    """Two loops on one quota of 100 KiB: one has much unsent, the other writes."""

    def __init__(self, loop: Loop, much: int) -> None:
        self.one, self.other = Uploads(loop), Uploads(Loop())
        self.other.memory = self.one.memory
        self.other.admission = Admission(self.one.memory, self.other.loop)
        self.silent = Connection(self.one, "takes nothing")
        self.silent.write(much)
        self.slow = Connection(self.other, "slow")


def test_the_loop_that_has_more_unsent_is_asked_to_cut(loop: Loop) -> None:
    loops = TwoLoops(loop, 80 * KIB)
    loops.slow.write(30 * KIB)
    loops.slow.write(1 * KIB)
    assert len(loop.letters) == 1
    assert (loops.silent.is_cut, loops.slow.is_cut) == (False, False), "it is asked, by one letter"
    loop.turn()
    assert (loops.silent.is_cut, loops.slow.is_cut) == (True, False)
    assert loops.one.memory.used == 31 * KIB


def test_who_has_half_of_the_quota_cuts_its_own(loop: Loop) -> None:
    loops = TwoLoops(loop, 80 * KIB)
    loops.slow.write(51 * KIB)
    assert (loops.silent.is_cut, loops.slow.is_cut) == (False, True)
    assert loop.letters == []


def test_a_loop_that_was_closed_is_not_asked_to_cut(loop: Loop) -> None:
    loops = TwoLoops(loop, 80 * KIB)
    loop.is_closed = True
    loops.slow.write(30 * KIB)
    assert (loops.silent.is_cut, loops.slow.is_cut) == (False, True)


def test_a_connection_that_ends_gives_back_what_was_unsent_once(loop: Loop) -> None:
    uploads = Uploads(loop)
    connection = Connection(uploads, "ends")
    connection.write(40 * KIB)
    connection.unsent.end()
    connection.unsent.end()
    assert uploads.memory.used == 0
    assert loop.timers == []


def test_an_upload_that_is_complete_is_neither_cut_nor_asks_for_more(loop: Loop) -> None:
    uploads = Uploads(loop)
    one = uploads.begin("one", 60 * KIB)
    one.complete()
    one.cut()
    assert uploads.cut == []
    for ask in (one.try_ask, lambda size: one.ask(size, list)):
        with pytest.raises(ClosedResourceError):
            ask(KIB)
    assert uploads.memory.used == 60 * KIB
    one.end()


@pytest.mark.parametrize("ends", [False, True])
def test_an_upload_whose_piece_was_handled_is_watched_again_unless_it_has_ended_meanwhile(
    loop: Loop, ends: bool
) -> None:
    async def handle() -> None:
        assert one not in uploads.admission.moving
        if ends:
            one.end()

    uploads = Uploads(loop)
    one = uploads.begin("one", 60 * KIB)
    with pytest.raises(StopIteration):
        one.while_nothing_is_read(handle()).send(None)
    assert (one in uploads.admission.moving) is not ends
    one.end()
    assert not loop.timers


FORK = """
import os, signal, threading, warnings
from eventengine import ResourceQuota
from {module} import {name}

warnings.simplefilter("ignore", DeprecationWarning)  # that a process with threads forks is what is tried here
locked, forked = threading.Event(), threading.Event()

def hold_the_lock():
    with {name}._all_lock:
        locked.set()
        forked.wait()

thread = threading.Thread(target=hold_the_lock)
thread.start()
locked.wait()
pid = os.fork()
if not pid:
    signal.alarm(20)
    {make}
    os._exit(0)
_, status = os.waitpid(pid, 0)
forked.set()
thread.join()
assert os.waitstatus_to_exitcode(status) == 0
"""


@pytest.mark.parametrize(
    ("needed", "module", "name", "make"),
    [
        ("eventengine", "eventengine.admission", "Admission", "Admission(ResourceQuota().memory, None)"),
        ("tornado", "eventengine.bridges.tornado.bound", "Bound", "Bound.of(ResourceQuota(), object())"),
        ("twisted.internet", "eventengine.bridges.twisted.bound", "Bound", "Bound.of(ResourceQuota(), object())"),
    ],
    ids=["admission", "tornado", "twisted"],
)
def test_a_child_process_can_serve_whatever_the_threads_of_its_parent_were_doing(
    needed: str, module: str, name: str, make: str
) -> None:
    pytest.importorskip(needed)
    run_script(FORK.format(module=module, name=name, make=make))
