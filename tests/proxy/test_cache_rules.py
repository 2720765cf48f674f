"""The behaviours that the public cache-tests project looks for, one case each, with the section of RFC 9111 that asks for it.

Each case: what the backend says, how the same is asked for again after a while, and what becomes of the second request.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from proxy.caches import Backend, at, get, ok, read, site

from gateway.errors import UpstreamFailed, UpstreamTimeout
from gateway.proxy.caching import CacheRequest, Fetched, Result

HIT, MISS, STALE, REVALIDATED, BYPASS = Result.HIT, Result.MISS, Result.STALE, Result.REVALIDATED, Result.BYPASS
FRESH = ("Cache-Control", "max-age=100")
TAG = ("ETag", '"v1"')


def cc(value: str) -> tuple[str, str]:
    return ("Cache-Control", value)


class Case(NamedTuple):
    section: str
    name: str
    first: Fetched
    then: Result
    after: float = 0.0
    request: CacheRequest = get()
    again: CacheRequest | None = None


def case(section: str, name: str, said: list[tuple[str, str]], then: Result, after: float = 0.0, **more: Any) -> Any:
    status = more.pop("status", 200)
    return pytest.param(Case(section, name, ok(*said, status=status), then, after, **more), id=f"{section} {name}")


def expires(value: str) -> tuple[str, str]:
    return ("Expires", value)


def modified(seconds: float) -> tuple[str, str]:
    return ("Last-Modified", at(seconds))


AUTH = get(authenticated=True, anonymous=False)
COOKIE = get(("Cookie", "session=1"))

FRESHNESS = [
    case("4.2.1", "max-age is fresh until its end", [cc("max-age=100")], HIT, 99),
    case("4.2.1", "max-age is stale at its end", [cc("max-age=100")], MISS, 100),
    case("4.2.1", "max-age=0 is stale at once", [cc("max-age=0")], MISS),
    case("4.2.1", "s-maxage goes before max-age", [cc("max-age=1, s-maxage=100")], HIT, 50),
    case("4.2.1", "s-maxage goes before max-age, shorter", [cc("max-age=100, s-maxage=1")], MISS, 50),
    case("4.2.1", "max-age goes before Expires", [cc("max-age=100"), expires(at(-5))], HIT, 50),
    case("4.2.1", "max-age=0 goes before Expires", [cc("max-age=0"), expires(at(500))], MISS),
    case("4.2.1", "Expires in the future", [expires(at(100))], HIT, 99),
    case("4.2.1", "Expires in the past", [expires(at(-100))], MISS),
    case("4.2.1", "Expires is measured from Date", [("Date", at(-50)), expires(at(10))], HIT, 9),
    case("5.3", "Expires: 0", [expires("0")], MISS),
    case("5.3", "Expires in another time zone is none", [expires(at(500).replace("GMT", "PST"))], MISS),
    case("5.3", "Expires without time zone is none", [expires(at(500).replace(" GMT", ""))], MISS),
    case("5.3", "Expires twice is none", [expires(at(500)), expires(at(500))], MISS),
    case("5.3", "Expires in the format of RFC 850", [expires("Tuesday, 19-Jan-38 03:14:07 GMT")], HIT, 99),
    case("5.3", "Expires in the format of asctime", [expires("Tue Jan 19 03:14:07 2038")], HIT, 99),
    case("5.3", "a bad Expires beats the heuristic", [expires("soon"), modified(-1e6)], MISS),
    case("1.2.2", "a huge max-age", [cc("max-age=99999999999")], HIT, 1e9),
    case("1.2.2", "a max-age of thousands of digits", [cc("max-age=" + "9" * 5000)], HIT, 1e9),
]
PARSING = [
    case("5.2", "names in capitals", [cc("MAX-AGE=100")], HIT, 50),
    case("5.2", "a quoted number", [cc('max-age="100"')], HIT, 50),
    case("4.2.1", "single quotes are no number", [cc("max-age='100'")], MISS, 50),
    case("4.2.1", "a negative max-age", [cc("max-age=-100")], MISS),
    case("4.2.1", "a fraction is no number", [cc("max-age=100.5")], MISS),
    case("4.2.1", "text is no number, also with a heuristic", [cc("max-age=soon"), modified(-1e6)], MISS),
    case("4.2.1", "max-age without a value", [cc("max-age"), expires(at(100))], MISS),
    case("4.2.1", "of two max-age the first counts", [cc("max-age=1, max-age=100")], MISS, 50),
    case("4.2.1", "of two lines the first counts", [cc("max-age=100"), cc("max-age=1")], HIT, 50),
    case("5.2", "directives on several lines", [cc("public"), cc("max-age=100")], HIT, 50),
    case("5.2.3", "unknown directives are passed over", [cc('foo, bar="a, max-age=1", max-age=100')], HIT, 50),
    case("5.2", "a directive inside quotes is none", [cc('foo="no-store", max-age=100')], HIT, 50),
    case("5.2.2.5", "no-store with an argument forbids too", [cc("max-age=100, no-store=x")], MISS),
    case("5.2.2.7", "private with nothing in quotes forbids all", [cc('private="", max-age=100')], MISS),
    case("5.2.2.7", "private with a quote left open forbids all", [cc('max-age=100, private="a')], MISS),
    case("5.2.2.7", "an unquoted field of private", [cc("private=x-a, max-age=100")], HIT, 50),
    case("5.2.2.7", "private with fields and bare is bare", [cc('private="a", private, max-age=100')], MISS),
    case("5.2.2.7", "private, bare and then with fields, is bare", [cc('private, private="a", max-age=100')], MISS),
    case("5.2.2.7", "private with fields, twice", [cc('private="a", private="b", max-age=100')], HIT, 50),
    case("5.2.2.7", "private with what is no field forbids all", [cc('private="a b", max-age=100')], MISS),
    case("5.2.2.9", "public with an argument allows nothing", [cc("public=x, max-age=100")], MISS, request=AUTH),
    case("5.2", "empty members are passed over", [cc(", , max-age=100, ,")], HIT, 50),
    case("5.2", "what begins with no name is passed over", [cc('"x", max-age=100')], HIT, 50),
]
DIRECTIVES = [
    case("5.2.2.5", "no-store", [cc("no-store, max-age=100")], MISS),
    case("5.2.2.7", "private", [cc("private, max-age=100")], MISS),
    case("5.2.2.7", "private beats public", [cc("private, public, max-age=100")], MISS),
    case("5.2.2.7", "private beats s-maxage", [cc("private, s-maxage=100")], MISS),
    case("5.2.2.4", "no-cache is validated", [cc("no-cache, max-age=100"), TAG], MISS),
    case("5.2.2.4", "no-cache for fields leaves the rest fresh", [cc('no-cache="x-a", max-age=100')], HIT, 50),
    case("5.2.2.3", "must-understand with a known status", [cc("must-understand, max-age=100")], HIT, 50),
    case("5.2.2.3", "must-understand with another status", [cc("must-understand, max-age=100")], MISS, status=299),
    case("5.2.2.2", "must-revalidate while fresh", [cc("must-revalidate, max-age=100")], HIT, 50),
    case("3", "nothing said, nothing to validate by", [], MISS),
    case("3", "Set-Cookie is not for others", [FRESH, ("Set-Cookie", "a=1")], MISS),
    case("3", "Set-Cookie that may be left out", [cc('max-age=100, no-cache="set-cookie"'), ("Set-Cookie", "a=1")], HIT),
    case("5.2.1.5", "a request's no-store", [FRESH], MISS, request=get(cc("no-store")), again=get()),
]
AGE = [
    case("4.2.3", "Age is counted", [FRESH, ("Age", "60")], MISS, 40),
    case("4.2.3", "Age is counted, still fresh", [FRESH, ("Age", "60")], HIT, 39),
    case("4.2.3", "Date in the past is age", [FRESH, ("Date", at(-60))], MISS, 40),
    case("4.2.3", "Age and Date are not added", [FRESH, ("Date", at(-60)), ("Age", "60")], HIT, 39),
    case("4.2.3", "Date in the future is no age", [FRESH, ("Date", at(60))], HIT, 99),
    case("5.1", "Age over the lifetime", [FRESH, ("Age", "100")], MISS),
    case("5.1", "Age that is no number", [FRESH, ("Age", "a while")], HIT, 50),
    case("5.1", "a negative Age", [FRESH, ("Age", "-50")], HIT, 99),
    case("5.1", "of several Ages the first", [FRESH, ("Age", "10, 100")], HIT, 50),
    case("5.1", "of several Ages the first, on lines", [FRESH, ("Age", "100"), ("Age", "0")], MISS),
    case("5.1", "a huge Age", [FRESH, ("Age", "9" * 30)], MISS),
    case("5.1", "an Age of a fraction", [FRESH, ("Age", "100.0")], HIT, 50),
]
HEURISTICS = [
    *(
        case("4.2.2", f"{status} has a heuristic lifetime", [modified(-1000)], HIT, 99, status=status)
        for status in (200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501)
    ),
    *(
        case("4.2.2", f"{status} has none", [modified(-1000)], MISS, status=status)
        for status in (201, 202, 302, 303, 307, 400, 403, 500, 502, 503, 504, 599)
    ),
    case("4.2.2", "a tenth, not more", [modified(-1000)], MISS, 100),
    case("4.2.2", "a day at most", [modified(-1e8)], MISS, 86_400),
    case("4.2.2", "public makes any status fit", [cc("public"), modified(-1000)], HIT, 99, status=599),
    case("4.2.2", "a query changes nothing", [modified(-1000)], HIT, 99, request=get(target="/a?b=1")),
    case("4.2.2", "a cookie: who knows whose it is", [modified(-1000)], MISS, request=COOKIE),
    case("4.2.2", "a cookie, and public", [cc("public"), modified(-1000)], HIT, 50, request=COOKIE),
    case("4.2.1", "a cookie, and Expires", [expires(at(100))], HIT, 50, request=COOKIE),
    case("4.2.1", "a cookie, and max-age", [FRESH], HIT, 50, request=COOKIE),
]
STATUSES = [
    *(
        case("3", f"{status} with max-age is stored", [FRESH], HIT, 50, status=status)
        for status in (200, 201, 203, 204, 299, 301, 302, 307, 400, 403, 404, 410, 499, 500, 503, 599)
    ),
    case("3.3", "206 is not stored", [FRESH, ("Content-Range", "bytes 0-2/9")], MISS, status=206),
    case("3", "304 to nobody's condition is not stored", [FRESH], MISS, status=304),
    case("3.3", "a part that calls itself 200", [FRESH, ("Content-Range", "bytes 0-2/9")], MISS),
    case("3.3", "less than Content-Length says", [FRESH, ("Content-Length", "4")], MISS),
    case("3.3", "as much as Content-Length says", [FRESH, ("Content-Length", "3")], HIT),
]
AUTHORIZATION = [
    case("3.5", "max-age alone", [FRESH], MISS, request=AUTH),
    case("3.5", "public", [cc("public, max-age=100")], HIT, request=AUTH),
    case("3.5", "s-maxage", [cc("s-maxage=100")], HIT, request=AUTH),
    case("3.5", "must-revalidate", [cc("must-revalidate, max-age=100")], HIT, request=AUTH),
    case("3.5", "a forwarded token on a public route", [FRESH], MISS, request=get(("Authorization", "Bearer a"))),
    case("3.5", "public and private", [cc("public, private, max-age=100")], MISS, request=AUTH),
    case(
        "4.1", "varies by a token that was taken away", [cc("public, max-age=9"), ("Vary", "Authorization")], MISS, request=AUTH
    ),
    case("4.1", "varies by a key that was taken away", [cc("public, max-age=9"), ("Vary", "x-api-key")], MISS, request=AUTH),
    case("3.5", "a heuristic", [modified(-1000)], MISS, request=AUTH),
]


def varied(by: str, one: list[tuple[str, str]], two: list[tuple[str, str]], then: Result, name: str) -> Any:
    said = [FRESH, ("Vary", by)]
    return case("4.1", name, said, then, request=get(*one), again=get(*two))


VARY = [
    varied("X", [("X", "1")], [("x", "1")], HIT, "the same value"),
    varied("X", [("X", "1")], [("X", "2")], MISS, "another value"),
    varied("X", [("X", "1")], [], MISS, "absent the second time"),
    varied("X", [], [("X", "1")], MISS, "absent the first time"),
    varied("X", [], [], HIT, "absent both times"),
    varied("X", [("X", "")], [], MISS, "empty is not absent"),
    varied("*", [], [], MISS, "by everything"),
    varied("X, *", [], [], MISS, "by something and everything"),
    varied("X, Y", [("X", "1"), ("Y", "1")], [("X", "1"), ("Y", "2")], MISS, "one of two differs"),
    varied("X, Y", [("X", "1"), ("Y", "1")], [("Y", "1"), ("X", "1")], HIT, "order is nothing"),
    varied("X", [("X", "a, b")], [("X", "a ,b")], HIT, "white space at commas is nothing"),
    varied("X", [("X", "a, b")], [("X", "a"), ("X", "b")], HIT, "lines are joined"),
    varied("X", [("X", "a, b")], [("X", "b, a")], MISS, "members are not sorted"),
    varied("", [("X", "1")], [("X", "2")], HIT, "by nothing"),
    varied(", X,", [("X", "1")], [("X", "2")], MISS, "empty members"),
    case(
        "4.1",
        "Vary on two lines",
        [FRESH, ("Vary", "X"), ("Vary", "Y")],
        MISS,
        request=get(("Y", "1")),
        again=get(("Y", "2")),
    ),
]
REQUESTS = [
    case("5.2.1.4", "no-cache", [FRESH], MISS, again=get(cc("no-cache"))),
    case("5.2.1.4", "no-cache is validated", [FRESH, TAG], MISS, again=get(cc("no-cache"))),
    case("5.4", "Pragma without Cache-Control", [FRESH], MISS, again=get(("Pragma", "no-cache"))),
    case("5.4", "Pragma beside Cache-Control", [FRESH], HIT, again=get(("Pragma", "no-cache"), cc("max-age=50"))),
    case("5.4", "another Pragma", [FRESH], HIT, again=get(("Pragma", "foo"))),
    case("5.4", "Pragma in an answer means nothing", [FRESH, ("Pragma", "no-cache")], HIT, 50),
    case("5.2.1.1", "max-age that is kept", [FRESH], HIT, 50, again=get(cc("max-age=50"))),
    case("5.2.1.1", "max-age that is not", [FRESH], MISS, 51, again=get(cc("max-age=50"))),
    case("5.2.1.1", "max-age=0 wants what is new", [FRESH], MISS, 1, again=get(cc("max-age=0"))),
    case("5.2.1.1", "max-age that is no number", [FRESH], MISS, 1, again=get(cc("max-age=x"))),
    case("5.2.1.3", "min-fresh that is kept", [FRESH], HIT, 50, again=get(cc("min-fresh=50"))),
    case("5.2.1.3", "min-fresh that is not", [FRESH], MISS, 51, again=get(cc("min-fresh=50"))),
    case("5.2.1.3", "min-fresh that is no number", [FRESH], HIT, 51, again=get(cc("min-fresh=x"))),
    case("5.2.1.2", "max-stale that is kept", [FRESH], STALE, 110, again=get(cc("max-stale=10"))),
    case("5.2.1.2", "max-stale that is not", [FRESH], MISS, 111, again=get(cc("max-stale=10"))),
    case("5.2.1.2", "max-stale without end", [FRESH], STALE, 9e5, again=get(cc("max-stale"))),
    case("5.2.1.2", "max-stale beside max-age", [FRESH], STALE, 105, again=get(cc("max-age=100, max-stale=10"))),
    case(
        "4.2.4", "max-stale against must-revalidate", [cc("max-age=9, must-revalidate")], MISS, 10, again=get(cc("max-stale"))
    ),
    case("4.2.4", "against proxy-revalidate", [cc("max-age=9, proxy-revalidate")], MISS, 10, again=get(cc("max-stale"))),
    case("4.2.4", "max-stale against s-maxage", [cc("s-maxage=9")], MISS, 10, again=get(cc("max-stale"))),
    case("4.2.4", "max-stale against no-cache", [cc("max-age=9, no-cache"), TAG], MISS, 10, again=get(cc("max-stale"))),
    case("5.2.1.5", "no-store does not forbid what is stored", [FRESH], HIT, again=get(cc("no-store"))),
    case("5.2.1.7", "only-if-cached that fits", [FRESH], HIT, again=get(cc("only-if-cached"))),
    case("3.3", "Range is passed by", [FRESH], BYPASS, again=get(("Range", "bytes=0-1"))),
    case("3.3", "a part asked for is not stored", [FRESH], MISS, request=get(("Range", "bytes=0-1")), again=get()),
    case("4.3.2", "If-Match is for the origin", [FRESH], BYPASS, again=get(("If-Match", '"v1"'))),
    case("4.3.2", "so is If-Unmodified-Since", [FRESH], BYPASS, again=get(("If-Unmodified-Since", at(0)))),
    case("2", "another target", [FRESH], MISS, again=get(target="/a?x")),
    case("2", "HEAD is answered by GET", [FRESH], HIT, again=get(method="HEAD")),
    case("2", "GET is not answered by HEAD", [FRESH], MISS, request=get(method="HEAD"), again=get()),
    case("2", "HEAD is answered by HEAD", [FRESH], HIT, request=get(method="HEAD")),
]
METHODS = [
    case("3", f"{method} is not stored", [FRESH], BYPASS, request=get(method=method))
    for method in ("POST", "PUT", "OPTIONS", "FOO")
]
STALES = [
    case("5861-3", "stale-while-revalidate", [cc("max-age=9, stale-while-revalidate=10")], STALE, 15),
    case("5861-3", "stale-while-revalidate is over", [cc("max-age=9, stale-while-revalidate=10")], MISS, 19),
    case("5861-3", "beside s-maxage", [cc("s-maxage=9, stale-while-revalidate=10")], STALE, 15),
    case("4.2.4", "against must-revalidate", [cc("max-age=9, stale-while-revalidate=10, must-revalidate")], MISS, 15),
    case("5861-3", "a request's no-cache", [cc("max-age=9, stale-while-revalidate=10")], MISS, 15, again=get(cc("no-cache"))),
    case("5861-3", "a request's max-age", [cc("max-age=9, stale-while-revalidate=9")], MISS, 15, again=get(cc("max-age=9"))),
]
ALL = [
    *(FRESHNESS + PARSING + DIRECTIVES + AGE + HEURISTICS + STATUSES),
    *(AUTHORIZATION + VARY + REQUESTS + METHODS + STALES),
]


@pytest.mark.parametrize("asked", ALL)
async def test_the_second_request(asked: Case) -> None:
    """What becomes of the second request is what the RFC says of the first answer, its age and the request."""
    async with site() as here:
        backend = Backend([asked.first])
        await here.results(backend, asked.request)
        here.clock.now += asked.after
        assert await here.results(backend, asked.again or asked.request) == [asked.then]


ERRORS = [
    pytest.param("max-age=9, stale-if-error=100", 50, (), STALE, id="5861-4 stale-if-error"),
    pytest.param("max-age=9, stale-if-error=100", 109, (), None, id="5861-4 stale-if-error is over"),
    pytest.param("max-age=9", 10, (cc("stale-if-error=100"),), STALE, id="5861-4 a request's stale-if-error"),
    pytest.param("s-maxage=9", 10, (cc("stale-if-error=100"),), None, id="4.2.4 against s-maxage"),
    pytest.param("s-maxage=9, stale-if-error=100", 10, (), STALE, id="5861-4 beside s-maxage"),
    pytest.param("max-age=9, stale-if-error=100, must-revalidate", 10, (), None, id="4.2.4 against must-revalidate"),
    pytest.param("max-age=9, stale-if-error=100, no-cache", 10, (), None, id="4.2.4 against no-cache"),
    pytest.param("max-age=9, stale-if-error=100", 10, (cc("no-cache"),), None, id="4.2.4 a request's no-cache"),
    pytest.param("max-age=9", 10, (), None, id="4.2.4 nothing allows it"),
    pytest.param("max-age=9", 1, (cc("max-age=0"),), None, id="4.2.4 nothing allows it though it is fresh"),
]


@pytest.mark.parametrize(("said", "after", "asked", "then"), ERRORS)
@pytest.mark.parametrize("failure", [500, 502, 503, 504, UpstreamFailed("gone")])
async def test_a_failing_backend(said: str, after: float, asked: Any, then: Result | None, failure: Any) -> None:
    """A stale answer stands in for an error as long as stale-if-error allows it."""
    async with site() as here:
        bad = ok(status=failure, body=b"bad") if isinstance(failure, int) else failure
        backend = Backend([ok(cc(said), TAG), bad])
        await here.results(backend, get())
        here.clock.now += after
        if then is None and not isinstance(failure, int):
            with pytest.raises(UpstreamFailed):
                await here.ask(backend, get(*asked))
            return
        answer = await here.ask(backend, get(*asked))
        assert (answer.status, answer.result) == ((200, STALE) if then else (failure, MISS))
        assert await read(answer) == (b"one" if then else b"bad")


async def test_a_client_error_is_no_error() -> None:
    """RFC 5861, 4: only 500, 502, 503 and 504 are errors that something stale may stand in for."""
    async with site() as here:
        backend = Backend([ok(cc("max-age=9, stale-if-error=100")), ok(status=404, body=b"gone")])
        await here.results(backend, get())
        here.clock.now += 10
        answer = await here.ask(backend, get())
        assert (answer.status, await read(answer)) == (404, b"gone")


async def test_only_if_cached_that_does_not_fit() -> None:
    """5.2.1.7: 504 without asking the backend."""
    async with site() as here:
        backend = Backend([ok(FRESH)])
        with pytest.raises(UpstreamTimeout):
            await here.ask(backend, get(cc("only-if-cached")))
        assert backend.heads == []


# --- validation ---


@pytest.mark.parametrize(
    ("validator", "condition"),
    [
        (TAG, ("If-None-Match", '"v1"')),
        (("ETag", 'W/"v1"'), ("If-None-Match", 'W/"v1"')),
        (modified(-9), ("If-Modified-Since", at(-9))),
    ],
)
async def test_a_stale_answer_is_validated(validator: tuple[str, str], condition: tuple[str, str]) -> None:
    """4.3.1 and 4.3.3: by its validators; 304 makes it fresh again."""
    async with site() as here:
        backend = Backend([ok(cc("max-age=9"), validator), ok(FRESH, validator, ("X", "new"), status=304)])
        await here.results(backend, get())
        here.clock.now += 10
        answer = await here.ask(backend, get(("If-None-Match", '"other"')))
        assert (answer.status, answer.result, await read(answer)) == (200, REVALIDATED, b"one")
        assert (answer.headers["X"], "Age" in answer.headers) == ("new", False)
        assert [item for item in backend.heads[1].items() if item[0].startswith("If-")] == [condition]
        here.clock.now += 99
        assert await here.results(backend, get()) == [HIT]
        assert len(here.cache.store) == 1


async def test_no_cache_is_validated_each_time() -> None:
    """5.2.2.4: no use without a successful validation."""
    async with site() as here:
        backend = Backend([ok(cc("no-cache"), TAG), ok(TAG, status=304)])
        assert await here.results(backend, get(), get(), get()) == [MISS, REVALIDATED, REVALIDATED]


UPDATES = [
    ("3.2 a field is replaced", ("X", "2"), "X", "2"),
    ("3.2 a field is added", ("Y", "2"), "Y", "2"),
    ("3.2 Content-Type stays", ("Content-Type", "text/html"), "Content-Type", "text/plain"),
    ("3.2 Content-Encoding stays", ("Content-Encoding", "gzip"), "Content-Encoding", None),
    ("3.2 Content-Length stays", ("Content-Length", "0"), "Content-Length", "3"),
    ("3.2 Expires is replaced", expires(at(500)), "Expires", at(500)),
    ("3.1 what Connection names is not taken", ("Connection", "x"), "Connection", None),
]


@pytest.mark.parametrize(("sent", "field", "value"), [case[1:] for case in UPDATES], ids=[case[0] for case in UPDATES])
async def test_a_304_updates_the_head(sent: tuple[str, str], field: str, value: str | None) -> None:
    """3.2: each field replaces the stored one, unless it describes the content."""
    async with site() as here:
        old = (cc("max-age=9"), TAG, ("X", "1"), ("Content-Type", "text/plain"), ("Content-Length", "3"), ("Set-A", "a"))
        backend = Backend([ok(*old), ok(cc("max-age=9"), TAG, sent, status=304)])
        await here.results(backend, get())
        here.clock.now += 10
        await here.results(backend, get())
        answer = await here.ask(backend, get())
        assert (answer.result, answer.headers.get(field)) == (HIT, value)


@pytest.mark.parametrize("tag", ['"v2"', 'W/"v2"'])
async def test_a_304_for_something_else(tag: str) -> None:
    """4.3.4: a 304 with another tag updates nothing; all is fetched again."""
    async with site() as here:
        backend = Backend([ok(cc("max-age=9"), TAG), ok(("ETag", tag), status=304), ok(FRESH, body=b"two")])
        await here.results(backend, get())
        here.clock.now += 10
        answer = await here.ask(backend, get())
        assert (answer.result, await read(answer)) == (MISS, b"two")
        assert "If-None-Match" not in backend.heads[2]


async def test_a_304_with_another_date_of_change() -> None:
    """4.3.4: so does one with another Last-Modified."""
    async with site() as here:
        backend = Backend([ok(cc("max-age=9"), modified(-50)), ok(modified(-40), status=304), ok(FRESH, body=b"two")])
        await here.results(backend, get())
        here.clock.now += 10
        assert await read(await here.ask(backend, get())) == b"two"


async def test_a_304_may_make_an_answer_private() -> None:
    """5.2.2.7: what becomes private is for the one who asked, and is no longer stored."""
    async with site() as here:
        backend = Backend([ok(cc("max-age=9"), TAG), ok(cc("private"), TAG, status=304), ok(body=b"two")])
        await here.results(backend, get())
        here.clock.now += 10
        assert await read(await here.ask(backend, get())) == b"one"
        assert len(here.cache.store) == 0


async def test_a_full_answer_replaces_the_stored_one() -> None:
    """4.3.3: a full answer to a validation takes its place."""
    async with site() as here:
        backend = Backend([ok(cc("max-age=9"), TAG), ok(FRESH, body=b"two")])
        await here.results(backend, get())
        here.clock.now += 10
        assert await here.results(backend, get(), get()) == [MISS, HIT]
        assert len(here.cache.store) == 1


# --- clients' conditions ---

CONDITIONS = [
    ("13.1.2 the same tag", ("If-None-Match", '"v1"'), 304),
    ("13.1.2 weakly the same", ("If-None-Match", 'W/"v1"'), 304),
    ("13.1.2 one of several", ("If-None-Match", '"a", "v1"'), 304),
    ("13.1.2 any", ("If-None-Match", "*"), 304),
    ("13.1.2 another tag", ("If-None-Match", '"v2"'), 200),
    ("13.1.2 no quotes", ("If-None-Match", "v1"), 200),
    ("13.1.3 the same date", ("If-Modified-Since", at(-50)), 304),
    ("13.1.3 a later date", ("If-Modified-Since", at(-40)), 304),
    ("13.1.3 an earlier date", ("If-Modified-Since", at(-60)), 200),
    ("13.1.3 no date", ("If-Modified-Since", "yesterday"), 200),
]


@pytest.mark.parametrize(("condition", "status"), [case[1:] for case in CONDITIONS], ids=[case[0] for case in CONDITIONS])
@pytest.mark.parametrize("warm", [False, True])
async def test_a_clients_condition(condition: tuple[str, str], status: int, warm: bool) -> None:
    """4.3.2: answered from what is stored, also where that has just been fetched, and the backend is asked for all."""
    async with site() as here:
        backend = Backend([ok(FRESH, TAG, modified(-50), ("Content-Type", "text/plain"))])
        if warm:
            await here.results(backend, get())
        answer = await here.ask(backend, get(condition))
        assert (answer.status, answer.result) == (status, HIT if warm else MISS)
        assert await read(answer) == (b"" if status == 304 else b"one")
        assert (answer.headers["ETag"], "Content-Type" in answer.headers) == ('"v1"', status == 200)
        assert condition[0] not in backend.heads[0]
        assert await here.results(backend, get()) == [HIT]


async def test_both_conditions() -> None:
    """RFC 9110, 13.2.2: If-Modified-Since counts for nothing beside If-None-Match."""
    async with site() as here:
        backend = Backend([ok(FRESH, TAG, modified(-50))])
        answer = await here.ask(backend, get(("If-None-Match", '"v2"'), ("If-Modified-Since", at(0))))
        assert answer.status == 200


async def test_a_condition_without_last_modified() -> None:
    """4.3.2: the Date of what is stored stands in for Last-Modified."""
    async with site() as here:
        backend = Backend([ok(FRESH)])
        await here.results(backend, get())
        assert (await here.ask(backend, get(("If-Modified-Since", at(0))))).status == 304
        assert (await here.ask(backend, get(("If-Modified-Since", at(-1))))).status == 200


async def test_a_condition_on_an_error() -> None:
    """RFC 9110, 13.2.1: only what would succeed is answered by 304."""
    async with site() as here:
        backend = Backend([ok(FRESH, TAG, status=404)])
        assert (await here.ask(backend, get(("If-None-Match", '"v1"')))).status == 404


# --- invalidation ---

INVALIDATIONS = [
    *((f"4.4 {method}", method, 200, (), True) for method in ("POST", "PUT", "DELETE", "PATCH", "FOO")),
    ("4.4 a redirection", "POST", 303, (), True),
    ("4.4 OPTIONS is safe", "OPTIONS", 200, (), False),
    ("4.4 an error of the client", "POST", 404, (), False),
    ("4.4 an error of the server", "POST", 500, (), False),
]


@pytest.mark.parametrize(
    ("method", "status", "said", "gone"), [case[1:] for case in INVALIDATIONS], ids=[case[0] for case in INVALIDATIONS]
)
async def test_unsafe_methods_invalidate(method: str, status: int, said: Any, gone: bool) -> None:
    """4.4: an unsafe method that succeeds makes what is stored worthless, whatever varies."""
    async with site() as here:
        backend = Backend([ok(FRESH, ("Vary", "X")), ok(FRESH, ("Vary", "X")), ok(*said, status=status), ok(FRESH)])
        await here.results(backend, get(), get(("X", "1")), get(method=method))
        assert len(here.cache.store) == (0 if gone else 2)


@pytest.mark.parametrize("field", ["Location", "Content-Location"])
@pytest.mark.parametrize(
    ("value", "gone"),
    [
        ("/b?c=1", True),
        ("b?c=1", True),
        ("https://API.example.com:443/b?c=1", True),
        ("https://other.example.com/b?c=1", False),
        ("http://api.example.com/b?c=1", False),
        ("https://[bad/b?c=1", False),
    ],
)
async def test_what_an_answer_names_is_invalidated(field: str, value: str, gone: bool) -> None:
    """4.4: Location and Content-Location too, if they are of the same origin."""
    async with site() as here:
        backend = Backend([ok(FRESH), ok((field, value), status=201)])
        await here.results(backend, get(target="/b?c=1"), get(method="POST"))
        assert len(here.cache.store) == (0 if gone else 1)


# --- HEAD ---


@pytest.mark.parametrize(
    ("said", "kept"),
    [((TAG,), True), ((("ETag", '"v2"'),), False), ((("Content-Length", "9"),), False), ((("Content-Length", "3"),), True)],
)
async def test_head_shows_what_became_of_get(said: Any, kept: bool) -> None:
    """4.3.5: an answer to HEAD that differs makes a stored answer to GET worthless."""
    async with site() as here:
        backend = Backend([ok(cc("max-age=9"), TAG, ("Content-Length", "3")), ok(cc("no-store"), *said, body=b"")])
        await here.results(backend, get())
        here.clock.now += 10
        await here.results(backend, get(method="HEAD"))
        assert len(here.cache.store) == kept


async def test_head_validates_get() -> None:
    """4.3.5: 304 to HEAD makes the stored answer to GET fresh again."""
    async with site() as here:
        backend = Backend([ok(cc("max-age=9"), TAG), ok(FRESH, TAG, status=304)])
        await here.results(backend, get())
        here.clock.now += 10
        answer = await here.ask(backend, get(method="HEAD"))
        assert (answer.result, answer.body) == (REVALIDATED, b"")
        assert await read(await here.ask(backend, get())) == b"one"


# --- heads of answers ---


async def test_age_and_date() -> None:
    """4 and 5.1: what is stored is sent with its age; RFC 9110, 6.6.1: what has no Date gets one."""
    async with site() as here:
        backend = Backend([ok(FRESH, ("Age", "7"))])
        first = await here.ask(backend, get())
        assert (first.headers["Age"], first.headers["Date"]) == ("7", at(0))
        here.clock.now += 5.9
        second = await here.ask(backend, get())
        assert (second.headers.getall("Age"), second.headers["Date"]) == (["12"], at(0))


async def test_a_bad_date_is_replaced() -> None:
    """RFC 9110, 6.6.1: by the time at which the answer came."""
    async with site() as here:
        answer = await here.ask(Backend([ok(FRESH, ("Date", "now"))]), get())
        assert answer.headers.getall("Date") == [at(0)]


async def test_the_time_that_an_answer_took_is_age() -> None:
    """4.2.3: response_delay; but not where the backend waits on purpose."""
    for held, result in ((False, MISS), (True, HIT)):
        async with site() as here:

            async def slow(headers: Any, here: Any = here) -> Fetched:
                here.clock.now += 60
                return ok(FRESH)

            await here.cache.fetch(get(held=held), slow)
            here.clock.now += 50
            assert await here.results(Backend([ok()]), get(held=held)) == [result]


KEPT = [
    ("3.1 unknown fields", "X-Anything", True),
    ("3.1 Connection", "Connection", False),
    ("3.1 what Connection names", "X-Hop", False),
    ("3.1 Keep-Alive", "Keep-Alive", False),
    ("3.1 Proxy-Authenticate", "Proxy-Authenticate", False),
    ("3.1 Transfer-Encoding", "Transfer-Encoding", False),
    ("3.1 Upgrade", "Upgrade", False),
    ("5.2.2.7 fields that are private", "X-Private", False),
    ("5.2.2.4 fields that are not for the cache", "X-Stale", False),
    ("3.1 Content-Type", "Content-Type", True),
]


@pytest.mark.parametrize(("field", "kept"), [case[1:] for case in KEPT], ids=[case[0] for case in KEPT])
async def test_fields_that_are_stored(field: str, kept: bool) -> None:
    """3.1: all fields, but for those of the connection and those that are for one user."""
    async with site() as here:
        value = "x-hop" if field == "Connection" else "something"
        fields = [cc('max-age=100, private="x-private", no-cache="x-stale"'), (field, value)]
        if field == "X-Hop":
            fields.append(("Connection", "x-hop"))
        backend = Backend([ok(*fields)])
        await here.results(backend, get())
        answer = await here.ask(backend, get())
        assert (answer.result, field in answer.headers) == (HIT, kept)


async def test_repeated_fields_stay_apart() -> None:
    """RFC 9110, 5.3: lines are kept as they came."""
    async with site() as here:
        links = [("Link", "<a>"), ("Link", "<b>"), ("X-Obs", "caf\udce9")]
        backend = Backend([ok(FRESH, *links)])
        await here.results(backend, get())
        answer = await here.ask(backend, get())
        assert answer.headers.getall("Link") == ["<a>", "<b>"]
        assert answer.headers["X-Obs"] == "caf\udce9"


async def test_cache_status() -> None:
    """RFC 9211: what this cache did, behind what caches nearer to the backend did."""
    async with site() as here:
        said = [cc("max-age=9, stale-if-error=9"), TAG, ("Vary", "X"), ("Cache-Status", "origin; hit")]
        backend = Backend([ok(*said), ok(*said), ok(cc("max-age=9"), status=304), ok(cc("private")), UpstreamFailed("gone")])
        seen = []
        for after, request in [
            (0, get()),
            (1, get()),
            (0, get(("X", "1"))),
            (9, get()),
            (0, get(("X", "2"))),
            (0, get(("Range", "bytes=0-1"))),
        ]:
            here.clock.now += after
            if request.headers.get("Range"):
                backend.answers[4] = ok(status=206)
            answer = await here.ask(backend, request)
            await read(answer)
            seen.append(answer.headers.getall("Cache-Status")[-1])
        assert seen == [
            "longpoll-gateway; fwd=uri-miss; fwd-status=200; stored",
            "longpoll-gateway; hit; ttl=8",
            "longpoll-gateway; fwd=vary-miss; fwd-status=200; stored",
            "longpoll-gateway; fwd=stale; fwd-status=304; ttl=9",
            "longpoll-gateway; fwd=vary-miss; fwd-status=200",
            "longpoll-gateway; fwd=bypass; fwd-status=206",
        ]
        assert (await here.ask(backend, get())).headers.getall("Cache-Status")[0] == "origin; hit"


async def test_variants_are_kept_side_by_side() -> None:
    """4.1: each value of what Vary names has its own answer, and Vary on a claim keeps principals apart."""
    async with site() as here:
        public = cc("public, max-age=100")
        ann, bob = (get(("X-User", name), authenticated=True, anonymous=False) for name in ("ann", "bob"))
        backend = Backend([ok(public, ("Vary", "X-User"), body=b"ann"), ok(public, ("Vary", "X-User"), body=b"bob")])
        assert await here.results(backend, ann, bob, ann, bob) == [MISS, MISS, HIT, HIT]
        assert await read(await here.ask(backend, ann)) == b"ann"


async def test_hosts_are_kept_apart() -> None:
    """RFC 9110, 4.2.3: scheme and host in any case, the default port or none; all else tells apart."""
    async with site() as here:
        backend = Backend([ok(FRESH)])
        asked = [
            CacheRequest("GET", scheme, host, "/a", get().headers, authenticated=False)
            for scheme, host in [
                ("https", "a.b"),
                ("HTTPS", "A.b:443"),
                ("https", "a.b:80"),
                ("http", "a.b:80"),
                ("http", "a.b"),
            ]
        ]
        assert await here.results(backend, *asked) == [MISS, HIT, MISS, MISS, HIT]
