"""One request until it has an outcome: tokens, breaker, redirects, failures and back-off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from client.puppet import Given, Puppet, World, problem

from gateway.client.asking import Query, StoppedByProgram, checked_url, origin
from gateway.client.backoff import Retry
from gateway.client.breaker import BreakerSettings, State
from gateway.client.counters import Counters
from gateway.client.effects import STOPPED, Answer, Failure, Send
from gateway.client.errors import AnswerInvalid, CircuitOpen, GaveUp, RedirectRefused, Refused, Unauthorized
from gateway.client.tokens import Token

OK = Answer(200, {}, b"good")
GET = Query("GET", "/v1/x", {})


def asked(
    *given: Given,
    world: World | None = None,
    query: Query = GET,
    read: Callable[[Answer], Any] = lambda answer: answer.body,
    attempts: int | None = None,
    deadline: float | None = None,
    **more: Any,
) -> tuple[Puppet, Counters]:
    world = world or World()
    counters = Counters()
    steps = world.asker.ask(query, read, counters, attempts=attempts, deadline=deadline)
    return Puppet(steps, given, world=world, **more), counters


def test_a_good_answer() -> None:
    """What `read` makes of it is the outcome."""
    puppet, counters = asked(OK)
    assert puppet.play() == b"good"
    assert counters == Counters(received=4)


def test_an_answer_that_is_not_as_it_should_be() -> None:
    """It is a failure of the gateway."""

    def read(answer: Answer) -> bytes:
        if answer.body == b"good":
            return b"read"
        raise AnswerInvalid("off")

    puppet, counters = asked(Answer(200, {}, b"bad"), OK, read=read)
    assert puppet.play() == b"read"
    assert counters.failures == counters.retries == 1


class TestRetries:
    @pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
    def test_what_is_tried_again(self, status: int) -> None:
        """Back-off grows, and Retry-After is the least."""
        patient = problem(status, "overloaded", headers={"retry-after": "7"})
        puppet, counters = asked(problem(status, "overloaded"), patient, OK)
        assert puppet.play() == b"good"
        assert puppet.slept == [0.5, 7.0]
        assert counters.failures == 2

    def test_attempts(self) -> None:
        """The last reason is told, with what the gateway said as its cause."""
        puppet, _ = asked(Failure("cut"), problem(503, "overloaded", detail="Full."), attempts=2)
        with pytest.raises(GaveUp, match=r"gave up after 2 attempts: 503 overloaded: Full\.") as caught:
            puppet.play()
        assert isinstance(caught.value.__cause__, Refused)
        assert (caught.value.attempts, caught.value.reason) == (2, "503 overloaded: Full.")

    def test_a_deadline(self) -> None:
        """What would come too late is not waited for."""
        puppet, _ = asked(Failure("cut"), Failure("cut"), world=World(retry=Retry(base=4, cap=4)), deadline=3.0)
        with pytest.raises(GaveUp):
            puppet.play()
        assert puppet.slept == [2.0]

    @pytest.mark.parametrize("status", [400, 403, 404, 409, 410, 422, 501, 505, 304])
    def test_what_is_final(self, status: int) -> None:
        """The whole problem document is with the error."""
        puppet, counters = asked(problem(status, "some_code", successor="/v2"))
        with pytest.raises(Refused) as caught:
            puppet.play()
        if status >= 400:
            assert caught.value.code == "some_code"
            assert caught.value.problem.document["successor"] == "/v2"
        assert counters.failures == 0

    def test_a_stop(self) -> None:
        """It ends the generator, whatever it waits for."""
        puppet, _ = asked(Failure("cut"))
        with pytest.raises(StoppedByProgram):
            puppet.play()


class TestBreaker:
    SETTINGS = BreakerSettings(failures=2, seconds=4.0, cap=8.0)

    def test_it_opens_and_a_probe_closes_it(self) -> None:
        """A subscription waits for it."""
        world = World(breaker=self.SETTINGS)
        puppet, _ = asked(Failure("a"), Failure("b"), Failure("c"), OK, world=world)
        assert puppet.play() == b"good"
        # Back-off of the second failure, then the rest of the open time (three quarters of 4); the same after the third.
        assert puppet.slept == [0.5, 1.0, 2.0, 2.0, 4.0]
        assert world.guard.state(world.now) is State.CLOSED
        assert world.guard.opened == 2

    def test_with_a_deadline_it_is_an_error(self) -> None:
        """Who publishes is told at once."""
        puppet, _ = asked(Failure("a"), Failure("b"), world=World(breaker=self.SETTINGS), deadline=60.0)
        with pytest.raises(CircuitOpen) as caught:
            puppet.play()
        assert caught.value.retry_after == 2.0

    def test_refusals_close_it(self) -> None:
        """A gateway that says what is wrong is well; so is one that says `too many`."""
        world = World(breaker=BreakerSettings(failures=1))
        puppet, _ = asked(problem(429, "rate_limited"), problem(403, "forbidden"), world=world)
        with pytest.raises(Refused):
            puppet.play()
        assert world.guard.state(world.now) is State.CLOSED

    def test_a_probe_that_is_given_up_lets_another_one_through(self) -> None:
        """A stop is no outcome."""
        world = World(breaker=BreakerSettings(failures=1, seconds=1.0))
        world.guard.failed(world.now)
        world.now += 1
        puppet, _ = asked(world=world)
        with pytest.raises(StoppedByProgram):
            puppet.play()
        assert world.guard.enter(world.now, 10.0) == 0.0


class TestTokens:
    def test_a_token_goes_along(self) -> None:
        """In the field that RFC 6750 has for it."""
        puppet, _ = asked(OK, world=World(token="abc"))
        puppet.play()
        assert puppet.sent[0].headers["Authorization"] == "Bearer abc"

    def test_a_provider_is_asked_first(self) -> None:
        """And not again while the token is good."""
        world = World(provided=True)
        for _ in range(2):
            puppet, counters = asked(OK, world=world, tokens=["t1"])
            puppet.play()
            assert puppet.sent[0].headers["Authorization"] == "Bearer t1"
        assert counters.renewals == 0

    def test_a_refused_token_is_renewed_once(self) -> None:
        """A second refusal is final."""
        refused = problem(401, "token_expired")
        puppet, counters = asked(refused, OK, world=World(provided=True), tokens=["t1", "t2"])
        assert puppet.play() == b"good"
        assert [send.headers["Authorization"] for send in puppet.sent] == ["Bearer t1", "Bearer t2"]
        assert (puppet.slept, counters.renewals) == ([], 2)
        puppet, _ = asked(refused, refused, world=World(provided=True), tokens=["t1", "t2", "t3"])
        with pytest.raises(Unauthorized):
            puppet.play()

    def test_a_fixed_token_is_not(self) -> None:
        """There is no other one."""
        puppet, _ = asked(problem(401, "token_invalid"), world=World(token="abc"))
        with pytest.raises(Unauthorized):
            puppet.play()

    def test_somebody_else_has_renewed_it_meanwhile(self) -> None:
        """Then the new one is tried, without asking for yet another."""
        world = World(token="t1", provided=True)

        class Meanwhile(Puppet):
            def _send(self, effect: Send) -> Any:
                answer = super()._send(effect)
                if len(self.sent) == 1:
                    world.credentials.take("t2")
                return answer

        steps = world.asker.ask(GET, lambda answer: answer.body, Counters())
        puppet = Meanwhile(steps, [problem(401, "token_expired"), OK], world=world)
        assert puppet.play() == b"good"
        assert puppet.sent[1].headers["Authorization"] == "Bearer t2"
        assert puppet.renewed == 0

    def test_a_provider_that_fails(self) -> None:
        """It is asked again after a while, unless the token before is still good."""
        puppet, counters = asked(OK, world=World(provided=True), tokens=[Failure("away"), "a b", "t1"])
        assert puppet.play() == b"good"
        assert puppet.slept == [0.5, 1.0]
        assert (counters.failures, counters.renewals) == (2, 1)
        world = World(token=Token("t0", World.unix + 10), provided=True)
        puppet, _ = asked(OK, world=world, tokens=[Failure("away")])
        assert puppet.play() == b"good"
        assert puppet.sent[0].headers["Authorization"] == "Bearer t0"

    def test_a_provider_that_fails_after_a_refusal(self) -> None:
        """The refused token is not final as long as there may be another."""
        refused = problem(401, "token_expired")
        puppet, counters = asked(refused, refused, OK, world=World(token="t0", provided=True), tokens=[Failure("away"), "t1"])
        assert puppet.play() == b"good"
        assert puppet.slept == [0.5]
        assert counters.failures == 1


class TestRedirects:
    def to(self, location: str | None, status: int = 307) -> Answer:
        return Answer(status, {} if location is None else {"location": location}, b"")

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_within_the_origin(self, status: int) -> None:
        """They are followed, fragments left out; the next request begins where it is meant to."""
        puppet, counters = asked(self.to("/else?x=1#top", status), self.to("more", status), OK)
        assert puppet.play() == b"good"
        assert [send.target for send in puppet.sent] == [
            "https://gw.test/v1/x", "https://gw.test/else?x=1", "https://gw.test/more",
        ]  # fmt: skip
        assert counters.redirects == 2

    @pytest.mark.parametrize(
        "location", ["https://evil.test/", "http://gw.test/", "https://gw.test:444/", "//evil.test", "", None]
    )
    def test_elsewhere(self, location: str | None) -> None:
        """The token would go along: it is an error."""
        puppet, _ = asked(self.to(location))
        with pytest.raises(RedirectRefused) as caught:
            puppet.play()
        assert caught.value.location == (location or "")

    def test_round_and_round(self) -> None:
        """Five are enough."""
        puppet, counters = asked(*[self.to("/x")] * 6)
        with pytest.raises(RedirectRefused):
            puppet.play()
        assert counters.redirects == 6

    def test_a_failure_begins_anew(self) -> None:
        """At the place that was meant, with all redirects to go."""
        puppet, _ = asked(self.to("/a"), Failure("cut"), OK)
        puppet.play()
        assert puppet.sent[2].target == "https://gw.test/v1/x"

    def test_not_every_method(self) -> None:
        """What would turn a POST into a GET is refused."""
        post = Query("POST", "/v1/x", {}, b"body")
        puppet, _ = asked(self.to("/a", 308), OK, query=post)
        assert puppet.play() == b"good"
        puppet, _ = asked(self.to("/a", 303), query=post)
        with pytest.raises(Refused):
            puppet.play()


def test_origins() -> None:
    """Scheme, host and port, with the port that a scheme has by itself."""
    assert origin("https://a.test/x") == origin("https://a.test:443") == ("https", "a.test", 443)
    assert origin("http://a.test") == ("http", "a.test", 80)
    assert origin("http://a.test:99999")[2] == -1


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://a", "http://", "http://a?x=1", "http://a#x", "http://u@a"])
def test_a_url_that_is_none(url: str) -> None:
    """A gateway has a scheme and a host, perhaps a path, and nothing else."""
    with pytest.raises(ValueError, match="expected the gateway's URL"):
        checked_url(url)


def test_a_url() -> None:
    """A slash at its end makes no difference."""
    assert checked_url("https://a.test/base/") == "https://a.test/base"
    assert STOPPED is not None
