"""Errors: stable codes, facts in, a sentence out, and nothing of what the caller sent."""

import inspect

import pytest

from gateway import errors, wire
from gateway.errors import GatewayError

EXAMPLES: list[GatewayError] = [
    errors.ParameterInvalid("limit", "a whole number from 1 to 1000"),
    errors.CursorInvalid(),
    errors.CursorMismatch(),
    errors.SubscriptionTooWide(partitions=300, limit=256),
    errors.BodyInvalid("The body is not JSON."),
    errors.RequestMalformed(),
    errors.TokenMissing(),
    errors.TokenInvalid("the signature does not fit"),
    errors.TokenExpired(),
    errors.TokenRevoked(),
    errors.Forbidden(),
    errors.NotFound(),
    errors.MethodNotAllowed(("GET", "HEAD")),
    errors.NotAcceptable("application/json"),
    errors.CursorReset("AbC"),
    errors.Superseded(),
    errors.CursorExpired("AbC", [{"channel": "a", "partition": 3, "from": 12, "to": 57}]),
    errors.Gone("The channel was retired."),
    errors.LengthRequired(),
    errors.BodyTooLarge(1_024),
    errors.RequestTimedOut(),
    errors.TargetTooLong(8_190),
    errors.MediaType("application/json"),
    errors.HeadTooLarge(8_190),
    errors.IdempotencyMismatch(),
    errors.RateLimited(policy="polls", quota=10, window=1.0, retry_after=0.2),
    errors.TooManyPolls(quota=5),
    errors.UpstreamFailed("The backend failed."),
    errors.UpstreamTimeout("The backend was too slow."),
    errors.Overloaded(),
    errors.BrokerUnavailable(),
    errors.Draining(),
    errors.CircuitOpen(30.0),
]


def defined() -> list[type[GatewayError]]:
    return [
        error
        for _, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, GatewayError) and error is not GatewayError
    ]


def test_every_error_has_an_example_and_a_code_of_its_own() -> None:
    assert {type(error) for error in EXAMPLES} == set(defined())
    codes = [error.code for error in defined()]
    assert len(codes) == len(set(codes))


def test_every_code_has_a_status_and_every_status_an_error() -> None:
    """`internal_error` is what the outermost layer makes of a bug; the domain has no such error."""
    assert {error.code for error in defined()} | {"internal_error"} == wire.STATUS.keys()


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: error.code)
def test_an_error_is_a_sentence(error: GatewayError) -> None:
    assert str(error) == error.detail
    assert error.detail[0].isupper() or isinstance(error, errors.ParameterInvalid)
    assert error.detail.endswith(".")
    assert '"' not in error.detail


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: error.code)
def test_coming_back_is_offered_where_it_helps(error: GatewayError) -> None:
    status = wire.STATUS[error.code][0]
    assert (error.retry_after is not None) == (status in (429, 503))


def test_facts_are_kept() -> None:
    assert errors.ParameterInvalid("wait", "seconds").extra == {"parameter": "wait"}
    assert errors.TokenInvalid("secret reason").reason == "secret reason"
    assert "secret" not in errors.TokenInvalid("secret reason").detail
    assert errors.MethodNotAllowed(("GET",)).allowed == ("GET",)
    limited = errors.RateLimited(policy="polls", quota=10, window=1.5, retry_after=0.2)
    assert (limited.policy, limited.quota, limited.window, limited.retry_after) == ("polls", 10, 1.5, 0.2)
    assert (errors.TooManyPolls(quota=5).quota, errors.TooManyPolls(quota=5, retry_after=3.0).retry_after) == (5, 3.0)
    assert (errors.BrokerUnavailable().outcome, errors.BrokerUnavailable().extra) == (None, {})
    unknown = errors.BrokerUnavailable(outcome="unknown")
    assert (unknown.outcome, unknown.extra) == ("unknown", {"outcome": "unknown"})
    assert errors.CursorExpired("c", []).extra == {"cursor": "c", "lost": []}
    assert errors.CursorReset("c").extra == {"cursor": "c"}
    assert (errors.BodyTooLarge(5).extra, errors.HeadTooLarge(5).extra, errors.TargetTooLong(5).extra) == ({"limit": 5},) * 3
