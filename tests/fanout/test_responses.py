"""Shared answers: what is encoded, what is counted, and which are kept."""

import json
from collections import Counter

from gateway.fanout.cursor import TopicPosition, encode
from gateway.fanout.reading import Lost, Message, Messages, Reading, Run
from gateway.fanout.responses import STEP_BYTES, Answer, Responses, build, empty, encoding
from gateway.fanout.subscription import Selection, Subscription
from gateway.records import Record

A = Selection("room/1", "room/{n}", "a", b"1")
B = Selection("room/2", "room/{n}", "a", b"2", format="text")
POSITION = {"a": TopicPosition(1, {0: 7})}


def reading(*messages: Message, lost: tuple[Lost, ...] = (), up_to_date: bool = True) -> Reading:
    return Reading(list(messages), POSITION, list(lost), up_to_date, at_tail=True, scanned=0)


def answer(size: int) -> Answer:
    return Answer("c", b"x" * (size - 501), Counter(), Counter(), ())


def test_an_answer_shows_messages_loss_and_cursor() -> None:
    first = Message(Record(5, 100, b"1", b'{"n": 1}'), A, 0)
    second = Message(Record(6, None, b"2", b"two"), B, 0)
    built = build(Subscription((A, B)), reading(first, second, lost=(Lost(A, 0, 2, 5), Lost(B, 0, 2, 5)), up_to_date=False))
    assert built.cursor == encode(POSITION)
    assert json.loads(built.body) == {
        "cursor": encode(POSITION),
        "messages": [
            {"channel": "room/1", "partition": 0, "offset": 5, "timestamp": 100, "key": "1", "headers": [], "value": {"n": 1}},
            {"channel": "room/2", "partition": 0, "offset": 6, "timestamp": None, "key": "2", "headers": [], "value": "two"},
        ],
        "lost": [
            {"channel": "room/1", "partition": 0, "from": 2, "to": 5},
            {"channel": "room/2", "partition": 0, "from": 2, "to": 5},
        ],
        "up_to_date": False,
    }
    assert built.delivered == {"room/{n}": 2}
    assert built.lost == {"room/{n}": 6}
    assert built.timestamps_ms == (100,)


def test_the_value_view_shows_bare_values() -> None:
    messages = (Message(Record(5, 100, b"1", b"[1, 2]"), A, 0), Message(Record(6, 100, b"1", None), A, 0))
    body = json.loads(build(Subscription((A,), view="value"), reading(*messages)).body)
    assert (body["messages"], body["up_to_date"]) == ([[1, 2], None], True)


def steps(subscription: Subscription, found: Reading) -> tuple[int, Answer]:
    """Return how many steps an answer takes, and the answer."""
    taken, going = 1, encoding(subscription, found)
    while True:
        try:
            next(going)
        except StopIteration as end:
            return taken, end.value
        taken += 1


def test_much_is_encoded_in_steps_and_comes_to_the_same() -> None:
    """A step is bounded in bytes, whether they come as many small records, as large ones, or each in a run of its own."""
    subscription = Subscription((A,))
    large = STEP_BYTES // 2
    for sizes, least, most in (
        ([1_000] * 1_000, 3, 5),
        ([10] * 2_000, 2, 4),
        ([large] * 6, 6, 6),
        ([2 * STEP_BYTES] * 3, 3, 3),
    ):
        records = [Record(n, 0, None, b'"%b"' % (b"x" * size)) for n, size in enumerate(sizes)]
        runs = reading()._replace(messages=Messages([Run(records, A, 0)]))
        taken, answer = steps(subscription, runs)
        assert least <= taken <= most
        single = reading(*(Message(record, A, 0) for record in records))
        taken, same = steps(subscription, single)
        assert least <= taken <= most
        assert answer == same == build(subscription, runs)
        assert len(json.loads(answer.body)["messages"]) == len(records)
        assert answer.delivered == {"room/{n}": len(records)}


def test_little_is_encoded_in_one_step() -> None:
    assert steps(Subscription((A,)), reading(Message(Record(5, 100, b"1", b"1"), A, 0)))[0] == 1


def test_the_age_of_history_is_not_told() -> None:
    found = reading(Message(Record(5, 100, b"1", b"1"), A, 0))
    assert build(Subscription((A,)), found).timestamps_ms == (100,)
    assert build(Subscription((A,)), found._replace(scanned=1)).timestamps_ms == ()


def test_an_empty_answer_is_a_cursor() -> None:
    assert empty("c") == Answer("c", b"", Counter(), Counter(), ())


def test_the_least_recently_used_answers_are_forgotten_over_the_bound() -> None:
    kept = Responses(4_000)
    for key in "abcd":
        kept.put(key, answer(1_000))
    assert (len(kept), kept.cost) == (4, 4_000)
    assert kept.get("a") == answer(1_000)
    kept.put("e", answer(1_000))
    assert kept.get("b") is None
    assert [key for key in "acde" if kept.get(key)] == ["a", "c", "d", "e"]
    assert (len(kept), kept.cost) == (4, 4_000)
    kept.put("f", answer(600))
    assert (len(kept), kept.cost) == (4, 3_600)


def test_an_answer_of_more_than_a_quarter_of_the_bound_is_not_kept() -> None:
    kept = Responses(4_000)
    kept.put("a", answer(1_001))
    assert (kept.get("a"), kept.cost) == (None, 0)


def test_an_answer_that_is_there_is_not_charged_twice() -> None:
    kept = Responses(4_000)
    first, second = answer(900), answer(800)
    kept.put("a", first)
    kept.put("a", second)
    assert kept.get("a") is first
    assert kept.cost == 900


def test_the_cost_of_an_answer_counts_all_that_grows() -> None:
    grown = Answer("c" * 10, b"b" * 100, Counter(), Counter(), tuple(range(50)))
    assert grown.cost == empty("").cost + 10 + 100 + 8 * 50


def test_no_more_answers_than_the_bound_are_kept() -> None:
    kept = Responses(1_000_000, 2)
    for key in "abc":
        kept.put(key, answer(600))
    assert [key for key in "abc" if kept.get(key)] == ["b", "c"]
    assert (len(kept), kept.cost) == (2, 1_200)
