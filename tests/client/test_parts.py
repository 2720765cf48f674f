"""The small parts of the session core: back-off, breaker, tokens, messages, positions, errors, counters, publishing."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.client import errors, publishing
from gateway.client.backoff import Retry, pace, retry_after
from gateway.client.breaker import Breaker, BreakerSettings, State
from gateway.client.counters import Counters
from gateway.client.effects import Answer
from gateway.client.errors import AnswerInvalid, Problem, read_problem, refusal
from gateway.client.messages import Batch, Message, read_answer
from gateway.client.policy import Action, action
from gateway.client.positions import Position, Progress
from gateway.client.publishing import BatchResult, Format, Published, RefusedLine
from gateway.client.tokens import Credentials, Token


class TestBackoff:
    @given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
    def test_full_jitter(self, failures: int, chance: float) -> None:
        """Evenly between nothing and a bound that doubles up to the cap."""
        wait = Retry(base=0.5, cap=30.0).wait(failures, lambda: chance)
        assert wait == chance * min(30.0, 0.5 * 2.0 ** min(failures - 1, 32))

    @pytest.mark.parametrize("wrong", [{"base": -1}, {"base": 5, "cap": 1}, {"attempts": 0}, {"deadline": 0}])
    def test_what_cannot_be(self, wrong: dict[str, Any]) -> None:
        """It is told where it is said."""
        with pytest.raises(ValueError, match="expected"):
            Retry(**wrong)

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            ("7", 7.0), ("0", 0.0), ("99999999999999", 300.0), ("-1", 0.0), ("1.5", 0.0), ("soon", 0.0), ("", 0.0), ("٣", 0.0),
            ("Tue, 14 Nov 2023 22:13:30 GMT", 10.0), ("Tue, 14 Nov 2023 22:13:30 -0000", 10.0),
            ("Tue, 14 Nov 2023 22:13:00 GMT", 0.0), ("Tue, 14 Nov 2099 22:13:00 GMT", 300.0),
        ],
    )  # fmt: skip
    def test_retry_after(self, value: str, seconds: float) -> None:
        """RFC 9110 §10.2.3: seconds or a date, bounded; all else is nothing."""
        assert retry_after({"retry-after": value}, 1_700_000_000.0) == seconds
        assert retry_after({}, 0.0) == 0.0

    @pytest.mark.parametrize(
        ("value", "seconds"), [("0.5", 0.5), ("2", 2.0), ("999", 60.0), ("-1", 0.0), ("x", 0.0), (".", 0.0), ("", 0.0)]
    )
    def test_the_pace(self, value: str, seconds: float) -> None:
        """Decimal seconds, bounded."""
        assert pace({"backoff": value}) == seconds


class TestBreaker:
    def test_its_states(self) -> None:
        """Closed, open for a while, half-open for one probe, open for longer, closed by a success."""
        breaker = Breaker(BreakerSettings(failures=2, seconds=4.0, cap=6.0), lambda: 1.0)
        breaker.failed(0.0)
        assert breaker.state(0.0) is State.CLOSED
        assert breaker.enter(0.0, 10.0) == 0.0
        breaker.failed(0.0)
        assert breaker.state(0.0) is State.OPEN
        assert breaker.enter(1.0, 10.0) == 3.0
        breaker.failed(1.0)  # one that was under way
        assert breaker.state(4.0) is State.HALF_OPEN
        assert breaker.enter(4.0, 10.0) == 0.0
        assert breaker.enter(5.0, 10.0) == 4.0
        assert breaker.enter(13.0, 10.0) == 1.0
        breaker.failed(5.0)
        assert breaker.enter(5.0, 10.0) == 6.0
        assert breaker.enter(11.0, 10.0) == 0.0
        breaker.left()
        assert breaker.enter(11.0, 10.0) == 0.0
        breaker.succeeded()
        assert breaker.state(11.0) is State.CLOSED
        assert breaker.opened == 2
        assert repr(breaker) == "<Breaker 0 failures, closed>"
        breaker.failed(0.0)
        breaker.failed(0.0)
        assert repr(breaker) == "<Breaker 2 failures, opened 1 times>"

    @pytest.mark.parametrize("wrong", [{"failures": 0}, {"seconds": 0}, {"seconds": 2, "cap": 1}])
    def test_what_cannot_be(self, wrong: dict[str, Any]) -> None:
        """It is told where it is said."""
        with pytest.raises(ValueError, match="expected"):
            BreakerSettings(**wrong)


def jwt(**claims: Any) -> str:
    return "e30." + base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=") + ".x"


class TestTokens:
    def test_one_that_is_fixed(self) -> None:
        """It is never due, also when it is over."""
        credentials = Credentials(jwt(exp=100), provided=False, renew_before=30.0)
        assert credentials.header() == {"Authorization": f"Bearer {jwt(exp=100)}"}
        assert not credentials.is_due(1000.0)
        assert credentials.is_over(100.0)
        assert repr(credentials) == "<Credentials number 1>"

    def test_one_that_is_provided(self) -> None:
        """It is due before its end, and at the beginning."""
        credentials = Credentials(None, provided=True, renew_before=30.0)
        assert credentials.is_due(0.0)
        assert credentials.is_over(0.0)
        assert credentials.header() == {}
        assert repr(credentials) == "<Credentials none>"
        credentials.take(Token("abc", 100.0))
        assert not credentials.is_due(69.0)
        assert credentials.is_due(70.0)
        assert not credentials.is_over(99.0)
        credentials.take("opaque")
        assert not credentials.is_due(1e12)
        assert not credentials.is_over(1e12)
        assert credentials.generation == 2

    @pytest.mark.parametrize(
        "text", ["a.b", "a.%.c", "a.e30.c", jwt(exp="x"), jwt(exp=None), "a." + "W" * 8 + ".c", jwt(exp=10**400)]
    )
    def test_what_tells_no_end(self, text: str) -> None:
        """A token is opaque unless it is a JWT with an end."""
        assert not Credentials(text, provided=True, renew_before=30.0).is_due(1e12)

    @pytest.mark.parametrize("wrong", ["", "a b", "a\n", "ä", "a" * 16_385, 7, None, Token("")])
    def test_what_no_header_can_carry(self, wrong: Any) -> None:
        """It is refused where it comes in."""
        with pytest.raises(ValueError, match="visible ASCII"):
            Credentials("x", provided=True, renew_before=30.0).take(wrong)


ENVELOPE = {"channel": "news", "partition": 0, "offset": 1, "timestamp": None, "key": None, "headers": [], "value": 1}


class TestMessages:
    def test_the_bytes_of_a_value(self) -> None:
        """Of a broken record, or of one of a binary channel."""
        broken = read(ENVELOPE | {"value": "AAH/", "encoding": "base64"})
        assert (broken.broken, broken.data) == (True, b"\x00\x01\xff")
        assert read(ENVELOPE | {"value": "AAH/"}).data == b"\x00\x01\xff"
        for value in ("?", 7):
            with pytest.raises(ValueError, match=r"base64|[Nn]on-base64|padding"):
                _ = read(ENVELOPE | {"value": value}).data

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"null", b'{"cursor":"c"}', b"[" * 100_000, b"\xff"])
    def test_what_is_no_answer(self, body: bytes) -> None:
        """Nothing but the documented error comes of it."""
        with pytest.raises(AnswerInvalid):
            read_answer(body, "application/json")

    @given(st.binary(max_size=200))
    def test_any_bytes(self, body: bytes) -> None:
        """A batch, or the documented error."""
        with contextlib.suppress(AnswerInvalid):
            assert isinstance(read_answer(body, "application/json; charset=utf-8"), Batch)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"offset": True}, {"partition": "0"}, {"key": 7}, {"key": {"base64": "?"}}, {"headers": [["a"]]}, {"headers": 7}, {"headers": 0},
            {"value": 7, "encoding": "base64"}, {"channel": None}, {"timestamp": "now"}, {"tombstone": 1},
        ],
    )  # fmt: skip
    def test_envelopes_that_are_none(self, wrong: dict[str, Any]) -> None:
        """One that is off makes the answer one that is off."""
        with pytest.raises(AnswerInvalid):
            read(ENVELOPE | wrong)

    def test_a_key_that_is_not_utf8(self) -> None:
        """It is bytes."""
        assert read(ENVELOPE | {"key": {"base64": "/wA="}}).key == b"\xff\x00"
        assert read(ENVELOPE | {"key": "42", "timestamp": 7}).key == "42"

    @pytest.mark.parametrize("number", [True, "1", None, 1.5])
    def test_losses_that_are_none(self, number: object) -> None:
        """So does what is told as lost."""
        lost = [{"channel": "news", "partition": number, "from": 0, "to": 1}]
        body = json.dumps({"cursor": "c", "messages": [], "up_to_date": True, "lost": lost}).encode()
        with pytest.raises(AnswerInvalid):
            read_answer(body, "application/json")

    def test_an_answer_without_a_cursor(self) -> None:
        """There would be nowhere to go on."""
        with pytest.raises(AnswerInvalid, match="no good cursor"):
            read_answer(b'{"cursor": 7, "messages": [], "up_to_date": true}', "application/json")

    def test_another_type(self) -> None:
        """A page of a hotel's network is no answer."""
        with pytest.raises(AnswerInvalid):
            read_answer(b"{}", "text/html")


def read(envelope: dict[str, Any]) -> Message:
    body = json.dumps({"cursor": "c", "messages": [envelope], "up_to_date": True}).encode()
    return read_answer(body, "application/json").messages[0]


class TestPositions:
    @given(
        st.none() | st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True),
        st.dictionaries(
            st.text(max_size=5), st.dictionaries(st.integers(0, 300), st.integers(0, 2**63), max_size=3), max_size=3
        ),
        st.lists(st.text(max_size=5), max_size=3),
    )
    def test_round_trip(self, cursor: str | None, beyond: dict[str, dict[int, int]], channels: list[str]) -> None:
        """What is stored as JSON is what comes back."""
        position = Position(cursor, beyond, tuple(channels))
        assert Position.read(json.loads(json.dumps(position.document()))) == position

    @pytest.mark.parametrize(
        "document",
        [
            None, [], {}, {"cursor": 7}, {"cursor": "a b"}, {"cursor": "c", "beyond": []}, {"cursor": "c", "beyond": {"news": 7}},
            {"cursor": "", "beyond": {}}, {"cursor": "c", "beyond": {"news": {"x": 1}}}, {"cursor": "c", "beyond": {"news": {"0": "1"}}},
            {"cursor": "c", "channels": "news"},
        ],
    )  # fmt: skip
    def test_what_is_none(self, document: object) -> None:
        """Anything else is refused."""
        with pytest.raises(ValueError):
            Position.read(document)

    def test_progress_in_words(self) -> None:
        """Its state is told by its repr."""
        progress = Progress(None)
        assert repr(progress) == "<Progress at no cursor, 0 messages open>"
        assert progress.position is None
        first = read(ENVELOPE)
        progress.take(Batch("c1", (first,)))
        assert repr(progress) == "<Progress at no cursor, 1 messages open>"
        assert progress.position is None
        assert progress.acknowledge(first) == 1
        assert progress.acknowledge(first) == 0
        assert repr(progress) == "<Progress at a cursor, 0 messages open>"


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "code", "kind"),
        [
            (401, "token_missing", errors.Unauthorized), (403, "forbidden", errors.Forbidden), (410, "gone", errors.Gone),
            (409, "cursor_reset", errors.CursorReset), (410, "cursor_expired", errors.CursorExpired),
            (409, "superseded", errors.Refused), (418, "", errors.Refused),
        ],
    )  # fmt: skip
    def test_classes(self, status: int, code: str, kind: type[errors.Refused]) -> None:
        """One for each thing that a program may want to tell apart."""
        error = refusal(Problem(status, code, title="No"))
        assert type(error) is kind
        assert str(error) == f"{status} {code}".rstrip() + ": No"
        assert error.code == code

    @pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b"[" * 100_000, b'{"code": 7}'])
    def test_what_is_no_problem_document(self, body: bytes) -> None:
        """Of it only the status is known."""
        problem = read_problem(502, body)
        assert (problem.status, problem.code) == (502, "")
        assert str(refusal(Problem(502))) == "502: no reason given"


@pytest.mark.parametrize(
    ("method", "status", "code", "then"),
    [
        ("GET", 200, "", Action.TAKE), ("POST", 201, "", Action.TAKE), ("GET", 204, "", Action.TAKE),
        ("GET", 301, "", Action.REDIRECT), ("POST", 301, "", Action.REFUSE), ("POST", 307, "", Action.REDIRECT),
        ("GET", 401, "token_expired", Action.RENEW), ("GET", 409, "cursor_reset", Action.RESET),
        ("GET", 409, "superseded", Action.REFUSE), ("GET", 410, "cursor_expired", Action.RESET), ("GET", 410, "gone", Action.REFUSE),
        ("GET", 429, "", Action.RETRY), ("GET", 503, "draining", Action.RETRY), ("GET", 501, "", Action.REFUSE),
        ("GET", 206, "", Action.REFUSE), ("GET", 304, "", Action.REFUSE), ("GET", 100, "", Action.REFUSE),
    ],
)  # fmt: skip
def test_the_table(method: str, status: int, code: str, then: Action) -> None:
    """What each kind of answer leads to."""
    assert action(method, status, code) is then


def test_counters_add_up() -> None:
    """Each number for itself."""
    assert Counters(polls=1, lost=2) + Counters(polls=3, empty=4) == Counters(polls=4, lost=2, empty=4)


class TestPublishing:
    def one(self, value: Any, **more: Any) -> Any:
        options = {"form": Format.JSON, "key": None, "tombstone": False, "idempotency_key": "k"} | more
        return publishing.one("/v1", "a/b c", value, **options)

    def test_one(self) -> None:
        """Value, type, key and the key against repeats."""
        query = self.one({"a": "ü"}, key="x&y")
        assert query.path == "/v1/publish?channel=a/b%20c&key=x%26y"
        assert query.body == '{"a":"ü"}'.encode()
        assert query.headers == {"Idempotency-Key": "k", "Content-Type": "application/json"}
        assert self.one(b"\x00").headers["Content-Type"] == "application/octet-stream"
        assert self.one("x", form=Format.TEXT).body == b"x"
        assert self.one(None, tombstone=True, key="k").body == b""

    @pytest.mark.parametrize(
        ("value", "form"), [(7, Format.TEXT), ("x", Format.BINARY), (object(), Format.JSON), (float("nan"), Format.JSON)]
    )
    def test_what_cannot_be_sent(self, value: Any, form: Format) -> None:
        """It is told before anything is sent, of a batch as well."""
        with pytest.raises(ValueError):
            self.one(value, form=form)
        with pytest.raises(ValueError):
            publishing.batch("/v1", "news", [value], form=form, key=None, idempotency_key="k")

    def test_a_batch(self) -> None:
        """One JSON value a line, bytes in base64."""
        query = publishing.batch("/v1", "news", [1, b"\x00", "x"], form=Format.JSON, key="k", idempotency_key="i")
        assert query.body == b'1\n"AA=="\n"x"\n'
        assert query.path == "/v1/publish?channel=news&key=k"

    @pytest.mark.parametrize("body", [b"{}", b"[]", b"{", b'{"partition":"x","offset":1,"cursor":"c"}', b"[" * 100_000])
    def test_answers_that_tell_nothing(self, body: bytes) -> None:
        """They are no answers."""
        for read_it in (publishing.read_one, lambda answer: publishing.read_batch(answer, 1)):
            with pytest.raises(AnswerInvalid):
                read_it(Answer(200, {}, body))

    def test_the_answer_to_a_batch(self) -> None:
        """In its order, with the problems of what was refused."""
        told = [{"partition": 0, "offset": 1}, {"problem": {"status": 400, "code": "body_invalid", "detail": "No."}}]
        answer = Answer(200, {}, json.dumps({"results": told, "cursor": "c"}).encode())
        result = publishing.read_batch(answer, 2)
        assert result == BatchResult((Published(0, 1), RefusedLine(1, result.refused[0].problem)), "c")
        assert (result.refused[0].problem.code, result.refused[0].problem.detail) == ("body_invalid", "No.")
        with pytest.raises(AnswerInvalid, match="of 3 tells of 2"):
            publishing.read_batch(answer, 3)

    def test_questions(self) -> None:
        """What a token may use, and what a cursor says."""
        assert publishing.channels("/gw").path == "/gw/channels"
        assert publishing.cursor("/v1", "a/b", ["x", "y z"]).path == "/v1/cursors/a%2Fb?channel=x&channel=y%20z"
        assert publishing.read_document(Answer(200, {}, b'{"a":1}')) == {"a": 1}
