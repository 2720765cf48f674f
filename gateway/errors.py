"""Every error that a client can be told of, each with a stable code (sans-I/O).

Facts go in, a sentence comes out. The domain knows no HTTP: `wire` gives each code its status. A sentence never repeats
what the caller sent and never names a thing that the caller may not see.
"""

from __future__ import annotations

from typing import ClassVar


class GatewayError(Exception):
    """Base of all errors that have a meaning for a client.

    `code` is stable for ever. `retry_after` is in seconds, or None where coming back does not help. `extra` are further
    members of the problem document (RFC 9457, section 3.2).
    """

    code: ClassVar[str]
    retry_after: float | None = None

    def __init__(self, detail: str, *, retry_after: float | None = None, **extra: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra = extra
        if retry_after is not None:
            self.retry_after = retry_after


class ParameterInvalid(GatewayError):
    """A query parameter or header is unknown, repeated or out of its bounds."""

    code = "parameter_invalid"

    def __init__(self, parameter: str, expected: str) -> None:
        super().__init__(f"{parameter}: expected {expected}.", parameter=parameter)


class CursorInvalid(GatewayError):
    """A cursor cannot be decoded."""

    code = "cursor_invalid"

    def __init__(self) -> None:
        super().__init__("The cursor is not one that this service gave out. Start again without it.")


class CursorMismatch(GatewayError):
    """A cursor has no topic in common with the subscription."""

    code = "cursor_mismatch"

    def __init__(self) -> None:
        super().__init__("The cursor belongs to other channels than those of the request.")


class SubscriptionTooWide(GatewayError):
    """The channels cover more partitions than a cursor can hold."""

    code = "subscription_too_wide"

    def __init__(self, *, partitions: int, limit: int) -> None:
        super().__init__(
            f"The channels cover {partitions} partitions; one subscription can hold {limit} in a cursor of 2,048"
            " characters. Split it."
        )


class BodyInvalid(GatewayError):
    """A request body is not what the channel's format says."""

    code = "body_invalid"


class RequestMalformed(GatewayError):
    """The bytes are not an HTTP request."""

    code = "request_malformed"

    def __init__(self, detail: str = "The request is not well-formed HTTP/1.1.") -> None:
        super().__init__(detail)


class TokenMissing(GatewayError):
    """No bearer token (RFC 6750, section 3: no error code in the challenge)."""

    code = "token_missing"

    def __init__(self) -> None:
        super().__init__("Send a bearer token in the Authorization header.")


class TokenInvalid(GatewayError):
    """The token cannot be verified; the reason is for the log, not for the caller."""

    code = "token_invalid"

    def __init__(self, reason: str = "") -> None:
        super().__init__("The token could not be verified.")
        self.reason = reason


class TokenExpired(GatewayError):
    """The token's time is over."""

    code = "token_expired"

    def __init__(self) -> None:
        super().__init__("The token has expired.")


class TokenRevoked(GatewayError):
    """The token, its principal or its key was withdrawn."""

    code = "token_revoked"

    def __init__(self) -> None:
        super().__init__("The token has been revoked.")


class Forbidden(GatewayError):
    """The caller may not use a channel, existing or not: both look the same."""

    code = "forbidden"

    def __init__(self) -> None:
        super().__init__("The token does not allow this.")


class NotFound(GatewayError):
    """No such path (never used for channels)."""

    code = "not_found"

    def __init__(self) -> None:
        super().__init__("There is nothing at this path.")


class MethodNotAllowed(GatewayError):
    """The path exists, the method does not fit; `allowed` becomes the Allow header."""

    code = "method_not_allowed"

    def __init__(self, allowed: tuple[str, ...]) -> None:
        super().__init__(f"This path takes {', '.join(allowed)}.")
        self.allowed = allowed


class NotAcceptable(GatewayError):
    """No media type of Accept can be served."""

    code = "not_acceptable"

    def __init__(self, offered: str) -> None:
        super().__init__(f"This path answers with {offered}.")


class CursorReset(GatewayError):
    """The log is not the one that the cursor was taken from; `cursor` is a fresh one at the current end."""

    code = "cursor_reset"

    def __init__(self, cursor: str) -> None:
        super().__init__(
            "The log behind the cursor was re-created or cut. Go on from the cursor in this answer, or start again.",
            cursor=cursor,
        )


class Superseded(GatewayError):
    """A newer poll of the same name took over; this one is not to be repeated."""

    code = "superseded"

    def __init__(self) -> None:
        super().__init__("A newer poll took over. Do not repeat this one.")


class CursorExpired(GatewayError):
    """Retention passed the cursor on a channel with `on_loss: fail`; `cursor` is the earliest one."""

    code = "cursor_expired"

    def __init__(self, cursor: str, lost: list[dict[str, object]]) -> None:
        super().__init__("Records behind the cursor are gone by retention.", cursor=cursor, lost=lost)


class Gone(GatewayError):
    """A channel or a route is past its sunset."""

    code = "gone"


class LengthRequired(GatewayError):
    """A body came without a length."""

    code = "length_required"

    def __init__(self) -> None:
        super().__init__("Send the body with Content-Length or chunked transfer coding.")


class BodyTooLarge(GatewayError):
    """A body, or one record of a batch, is over the bound."""

    code = "body_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The bound is {limit} bytes.", limit=limit)


class RequestTimedOut(GatewayError):
    """The client took too long to send a body."""

    code = "request_timeout"

    def __init__(self) -> None:
        super().__init__("The body did not come in time.")


class TargetTooLong(GatewayError):
    """The request target is over the bound."""

    code = "target_too_long"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request target is longer than {limit} bytes.", limit=limit)


class MediaType(GatewayError):
    """The body's Content-Type is not one that the channel takes."""

    code = "media_type"

    def __init__(self, expected: str) -> None:
        super().__init__(f"This channel takes {expected}.")


class HeadTooLarge(GatewayError):
    """A header field, or all of them together, is over the bound."""

    code = "head_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"A header field is longer than {limit} bytes.", limit=limit)


class IdempotencyMismatch(GatewayError):
    """An Idempotency-Key came again with another body."""

    code = "idempotency_mismatch"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used with another body.")


class RateLimited(GatewayError):
    """A token bucket is empty. `policy` names it, `quota` and `window` (seconds) are its size."""

    code = "rate_limited"

    def __init__(self, *, policy: str, quota: int, window: float, retry_after: float) -> None:
        super().__init__("Too many requests.", retry_after=retry_after)
        self.policy = policy
        self.quota = quota
        self.window = window


class TooManyPolls(GatewayError):
    """The principal holds as many polls as it may."""

    code = "too_many_polls"

    def __init__(self, *, quota: int, retry_after: float = 1.0) -> None:
        super().__init__(f"At most {quota} polls at once.", retry_after=retry_after)
        self.quota = quota


class UpstreamFailed(GatewayError):
    """A backend did not answer properly."""

    code = "upstream_failed"


class UpstreamTimeout(GatewayError):
    """A backend did not answer in time."""

    code = "upstream_timeout"


class Overloaded(GatewayError):
    """A bound of the whole process is reached; `bound` names it for the metrics."""

    code = "overloaded"

    def __init__(self, retry_after: float = 5.0, *, bound: str = "parked") -> None:
        super().__init__("The server holds as much as it can.", retry_after=retry_after)
        self.bound = bound


class BrokerUnavailable(GatewayError):
    """Kafka cannot be asked now. `outcome` "unknown": a publish may or may not have been stored."""

    code = "broker_unavailable"

    def __init__(self, *, retry_after: float = 2.0, outcome: str | None = None) -> None:
        extra = {} if outcome is None else {"outcome": outcome}
        super().__init__("The log behind this channel cannot be reached.", retry_after=retry_after, **extra)
        self.outcome = outcome


class Draining(GatewayError):
    """The process is about to end."""

    code = "draining"

    def __init__(self, retry_after: float = 1.0) -> None:
        super().__init__("This instance is shutting down.", retry_after=retry_after)


class CircuitOpen(GatewayError):
    """A backend is given rest."""

    code = "circuit_open"

    def __init__(self, retry_after: float) -> None:
        super().__init__("The backend has failed too often and is given rest.", retry_after=retry_after)
