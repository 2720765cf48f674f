"""The session, without a socket: what it asks, delivers, waits for and stores."""

from __future__ import annotations

from typing import Any

import pytest
from client.puppet import World, batch, empty, message, problem, subscribed

from gateway.client.backoff import Retry
from gateway.client.counters import Counters
from gateway.client.effects import Answer, Failure
from gateway.client.errors import CursorExpired, CursorReset, GaveUp, Refused, StoreInvalid
from gateway.client.messages import Lost, Reset
from gateway.client.positions import Position
from gateway.client.session import Acks, Session, Subscribe


def test_the_first_cursor_is_taken_without_waiting() -> None:
    """Then polls are held, each behind the answer before."""
    puppet, session = subscribed(empty("c1"), batch("c2", message(5, "x")), empty("c3"))
    assert session.position is None
    assert repr(session) == "<Session news: <Progress at no cursor, 0 messages open>>"
    puppet.play()
    assert [send.target for send in puppet.sent] == [
        "https://gw.test/v1/subscribe?channel=news&wait=0",
        "https://gw.test/v1/subscribe?channel=news&wait=30",
        "https://gw.test/v1/subscribe?channel=news&wait=30",
    ]
    assert [send.headers.get("Cursor") for send in puppet.sent] == [None, "c1", "c2"]
    assert [send.patience for send in puppet.sent] == [5.0, 35.0, 35.0]
    assert puppet.sent[0].headers == {"X-Own": "1", "Accept": "application/json"}
    assert [(each.offset, each.value) for each in puppet.messages] == [(5, "x")]
    assert session.position == Position("c3", {"news": {0: 5}}, ("news",))


def test_all_that_can_be_asked_for() -> None:
    """Parameters go into the query, several channels as well."""
    wanted = Subscribe(("a/b", "c d"), start="-10", wait=2.5, limit=5, max_bytes=2048, linger=50, prefix="/gw")
    assert wanted.path(2.5) == "/gw/subscribe?channel=a/b&channel=c%20d&wait=2.5&limit=5&max_bytes=2048&linger=50&from=-10"


@pytest.mark.parametrize(
    "wrong",
    [
        {"channels": ()},
        {"channels": ("a",) * 2},
        {"channels": ("",)},
        {"channels": (["a", "b"],)},
        {"channels": tuple(map(str, range(33)))},
        {"start": "yesterday"},
        {"start": "-0"},
        {"cursor": "a b"},
        {"wait": -1},
        {"wait": 55.1},
        {"poll_every": 0},
        {"margin": 0},
    ],
)
def test_what_cannot_be_asked_for(wrong: dict[str, Any]) -> None:
    """It is told before anything is sent."""
    with pytest.raises(ValueError, match="expected"):
        Subscribe(**({"channels": ("news",)} | wrong))


@pytest.mark.parametrize("start", ["latest", "earliest", "-1", "-1000", "2026-11-26T10:00:00Z", "2026-11-26 10:00:00+01:00"])
def test_starts(start: str) -> None:
    """Each has its place in the query of all polls, which so stay the same."""
    puppet, _ = subscribed(empty("c1"), empty("c2"), wanted=Subscribe(("news",), start=start))
    puppet.play()
    assert all("&from=" in send.target for send in puppet.sent)


def test_progress_of_a_scan_is_not_waited_for() -> None:
    """An answer without messages that is not up to date is followed at once."""
    answers = [batch(f"c{number}", up_to_date=False) for number in range(5)]
    puppet, _ = subscribed(*answers, wanted=Subscribe(("news",), cursor="c"))
    puppet.play()
    assert puppet.slept == []


def test_empty_answers_that_come_at_once_are_not_spun_on() -> None:
    """From the third in a row on there is a pause, which grows; a message ends it."""
    quick = [empty(f"c{number}", seconds=0.0) for number in range(5)]
    puppet, _ = subscribed(*quick, batch("d", message(1)), *quick[:2], wanted=Subscribe(("news",), cursor="c"))
    puppet.play()
    assert puppet.slept == [0.5, 1.0, 2.0]


def test_a_short_wait_may_end_at_once() -> None:
    """Who does not want to be held is not held."""
    quick = [empty(f"c{number}", seconds=0.0) for number in range(5)]
    puppet, _ = subscribed(*quick, wanted=Subscribe(("news",), cursor="c", wait=0.5))
    puppet.play()
    assert puppet.slept == []


def test_the_pace_that_the_gateway_asks_for() -> None:
    """`Backoff` on good answers, also where more would be there."""
    given = [empty("c1", backoff="2.5"), batch("c2", message(1), headers={"backoff": "0.5"}, up_to_date=False)]
    puppet, _ = subscribed(*given, wanted=Subscribe(("news",), cursor="c"))
    puppet.play()
    assert puppet.slept == [2.5, 0.5]


def test_short_polling() -> None:
    """At its pace, but at once where more is there."""
    given = [empty("c1", seconds=0.25), batch("c2", message(1), up_to_date=False), empty("c3", seconds=9.0)]
    puppet, _ = subscribed(*given, wanted=Subscribe(("news",), cursor="c", poll_every=1.0))
    puppet.play()
    assert all("&wait=0" in send.target for send in puppet.sent)
    assert puppet.slept == [0.75]


def test_no_further_than_the_end() -> None:
    """Without `follow` the first answer that is up to date is the last."""
    given = [batch("c1", message(1), up_to_date=False), batch("c2", message(2)), empty("c3")]
    puppet, session = subscribed(*given, wanted=Subscribe(("news",), follow=False))
    puppet.play()
    assert len(puppet.sent) == 2
    assert session.position is not None
    assert session.position.cursor == "c2"


class TestStores:
    WANTED = Subscribe(("news", "chat"), stored=True)

    def test_each_answer_is_stored_once(self) -> None:
        """The first cursor too; what does not move is not stored again."""
        given = [empty("c1"), empty("c1"), batch("c2", message(1)), empty("c2")]
        puppet, session = subscribed(*given, wanted=self.WANTED)
        puppet.play()
        assert [each.cursor for each in puppet.saved] == ["c1", "c2"]
        assert session.unsaved is None

    def test_it_goes_on_from_what_is_stored(self) -> None:
        """Without a first poll for a cursor; what was processed behind it is left out."""
        stored = Position("c5", {"news": {0: 7}}, ("chat", "news"))
        given = [batch("c6", message(7), message(8), message(7, partition=1), message(1, channel="chat"))]
        puppet, session = subscribed(*given, wanted=self.WANTED, stored=stored)
        puppet.play()
        assert "wait=30" in puppet.sent[0].target
        assert [(each.channel, each.partition, each.offset) for each in puppet.messages] == [
            ("news", 0, 8), ("news", 1, 7), ("chat", 0, 1),
        ]  # fmt: skip
        assert session._counters.duplicates == 1
        assert puppet.saved == [Position("c6", {"news": {0: 8, 1: 7}, "chat": {0: 1}}, ("news", "chat"))]

    def test_the_store_of_another_subscription(self) -> None:
        """It is not used: its cursor knows other topics."""
        puppet, _ = subscribed(wanted=self.WANTED, stored=Position("c5", {}, ("news",)))
        with pytest.raises(StoreInvalid, match="the position in news"):
            puppet.play()

    def test_a_position_that_tells_no_channels(self) -> None:
        """A store of the program's own may know only a cursor."""
        puppet, _ = subscribed(empty("c6"), wanted=self.WANTED, stored=Position("c5"))
        puppet.play()
        assert puppet.sent[0].headers["Cursor"] == "c5"

    def test_a_stop_in_the_midst(self) -> None:
        """What was processed of an answer is stored beside the cursor before it."""
        given = [empty("c1"), batch("c2", message(1), message(2), message(3))]
        puppet, session = subscribed(*given, wanted=self.WANTED, stop_after=2)
        puppet.play()
        assert puppet.saved[-1] == Position("c1", {"news": {0: 2}}, ("news", "chat"))
        assert session.unsaved is None

    def test_an_error_in_the_midst(self) -> None:
        """Also what ends a subscription leaves its position stored."""
        wanted = Subscribe(("news",), stored=True, acks=Acks.MANUAL)
        puppet, session = subscribed(batch("c1", message(1)), problem(403, "forbidden"), wanted=wanted)
        with pytest.raises(Refused):
            puppet.play()
        assert puppet.saved == []
        assert session.position is None

    def test_a_stop_before_the_first_cursor(self) -> None:
        """There is nothing to store."""
        puppet, _ = subscribed(wanted=self.WANTED)
        puppet.play()
        assert puppet.saved == []


class TestAcks:
    def test_manual(self) -> None:
        """The cursor of an answer is passed when all of it, and all before it, is acknowledged."""
        wanted = Subscribe(("news",), cursor="c", acks=Acks.MANUAL, stored=True)
        given = [batch("c1", message(1), message(2)), batch("c2", message(3)), empty("c3")]
        puppet, session = subscribed(*given, wanted=wanted)
        puppet.play()
        assert session.position == Position("c", {}, ("news",))
        first, second, third = puppet.messages
        session.acknowledge(second)
        assert session.position == Position("c1", {"news": {0: 2}}, ("news",))
        session.acknowledge(first)
        assert session.position == Position("c1", {"news": {0: 2}}, ("news",))
        session.acknowledge(third)
        assert session.position == Position("c3", {"news": {0: 3}}, ("news",))
        assert session.unsaved == session.position


class TestLostAndReset:
    def test_lost(self) -> None:
        """It is told before the messages, and counted."""
        puppet, session = subscribed(
            batch("c1", message(58), lost=[{"channel": "news", "partition": 0, "from": 12, "to": 58}]),
            wanted=Subscribe(("news",), cursor="c"),
        )
        puppet.play()
        assert puppet.told == [Lost("news", 0, 12, 58)]
        assert session._counters == Counters(polls=1, messages=1, lost=46, received=session._counters.received)

    @pytest.mark.parametrize(
        ("status", "code", "kind"), [(409, "cursor_reset", CursorReset), (410, "cursor_expired", CursorExpired)]
    )
    def test_a_reset_without_a_say(self, status: int, code: str, kind: type[CursorReset]) -> None:
        """It is an error that has the cursor."""
        puppet, _ = subscribed(problem(status, code, cursor="new"), wanted=Subscribe(("news",), cursor="c"))
        with pytest.raises(kind) as caught:
            puppet.play()
        assert caught.value.cursor == "new"

    @pytest.mark.parametrize(("chosen", "then"), [(None, "new"), ("mine", "mine")])
    def test_a_reset_with_a_say(self, chosen: str | None, then: str) -> None:
        """It goes on where the program says, and the same offsets are other records."""
        wanted = Subscribe(("news",), cursor="c", resets=True, stored=True)
        given = [batch("c1", message(5)), problem(409, "cursor_reset", cursor="new"), batch("c2", message(5))]
        puppet, session = subscribed(*given, wanted=wanted, told=lambda _: chosen)
        puppet.play()
        assert puppet.told == [Reset("cursor_reset", "new")]
        assert puppet.sent[2].headers["Cursor"] == then
        assert len(puppet.messages) == 2
        assert [each.cursor for each in puppet.saved] == ["c1", then, "c2"]
        assert session._counters.resets == 1

    def test_a_reset_to_what_is_none(self) -> None:
        """The program's mistake is its own."""
        wanted = Subscribe(("news",), cursor="c", resets=True)
        puppet, _ = subscribed(problem(409, "cursor_reset", cursor="new"), wanted=wanted, told=lambda _: "a b")
        with pytest.raises(ValueError, match="no cursor"):
            puppet.play()

    def test_a_reset_without_a_cursor(self) -> None:
        """Then there is nowhere to go on."""
        wanted = Subscribe(("news",), cursor="c", resets=True)
        puppet, _ = subscribed(problem(409, "cursor_reset"), wanted=wanted)
        with pytest.raises(CursorReset):
            puppet.play()


def test_failures_do_not_move_it() -> None:
    """It asks again from the same cursor, and delivers nothing of what was broken."""
    bad = Answer(200, {"content-type": "application/json"}, b'{"cursor":"c9"')
    puppet, session = subscribed(Failure("cut"), bad, batch("c1", message(1)), wanted=Subscribe(("news",), cursor="c"))
    puppet.play()
    assert [send.headers["Cursor"] for send in puppet.sent] == ["c", "c", "c"]
    assert puppet.slept == [0.5, 1.0]
    assert session._counters.failures == 2


def test_as_many_failures_as_the_program_bears() -> None:
    """A subscription has as many attempts as `Retry` says, without end by default."""
    world = World(retry=Retry(base=1.0, cap=1.0, attempts=2))
    puppet, _ = subscribed(Failure("a"), Failure("b"), world=world, wanted=Subscribe(("news",), cursor="c"))
    with pytest.raises(GaveUp, match="after 2 attempts: b"):
        puppet.play()
    puppet, _ = subscribed(*[Failure("a")] * 50, wanted=Subscribe(("news",), cursor="c"))
    puppet.play()
    assert max(puppet.slept[:50]) == 4.0


def test_what_no_session_makes_reaches_the_program() -> None:
    """A mistake of ours is no failure of the gateway: it is not tried again."""
    puppet, session = subscribed(ZeroDivisionError(), wanted=Subscribe(("news",), cursor="c"))
    with pytest.raises(ZeroDivisionError):
        puppet.play()
    assert isinstance(session, Session)
