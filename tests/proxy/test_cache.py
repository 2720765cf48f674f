"""Many requests for the same are one fetch; who must not share goes to the backend at once; nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from proxy.caches import Backend, Body, Site, get, ok, read, site
from waiting import eventually

from gateway.errors import UpstreamFailed
from gateway.proxy.caching import CacheAnswer, CacheRequest, Fetched, Result

FRESH = ("Cache-Control", "max-age=100")
PUBLIC = ("Cache-Control", "public, max-age=100")
TAG = ("ETag", '"v1"')
NAMED = get(authenticated=True, anonymous=False)


def ask(here: Site, backend: Backend, request: CacheRequest) -> asyncio.Task[tuple[CacheAnswer, bytes]]:
    async def asked() -> tuple[CacheAnswer, bytes]:
        answer = await here.ask(backend, request)
        return answer, await read(answer)

    return asyncio.ensure_future(asked())


async def crowd(
    here: Site, backend: Backend, requests: list[CacheRequest], *, fetches: int = 1
) -> list[tuple[CacheAnswer, bytes]]:
    """Ask all at the same time; the backend answers once so many fetches have reached it."""
    backend.gate = asyncio.Event()
    tasks = [ask(here, backend, request) for request in requests]
    await eventually(lambda: len(backend.heads) == fetches)
    backend.gate.set()
    return await asyncio.gather(*tasks)


def counted(answers: list[tuple[CacheAnswer, bytes]]) -> Counter[Result]:
    return Counter(answer.result for answer, _ in answers)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_hundred_are_one(held: bool, named: bool, streamed: bool) -> None:
    """A hundred equal requests, or long polls, are one fetch when the answer says that it is for all."""
    async with site() as here:
        backend = Backend([ok(PUBLIC, body=Body(b"o", b"n", b"e") if streamed else b"one")])
        answers = await crowd(here, backend, [get(authenticated=named, anonymous=not named, held=held)] * 100)
        assert counted(answers) == {Result.MISS: 1, Result.COLLAPSED: 99}
        assert {body for _, body in answers} == {b"one"}
        assert len(backend.heads) == 1
        assert answers[5][0].headers["Cache-Status"].startswith("longpoll-gateway; fwd=miss; collapsed")
        assert repr(here.cache).endswith("0 to join of 0 fetches>")


async def test_a_hundred_heads_are_one() -> None:
    """HEAD is collapsed like GET."""
    async with site() as here:
        answers = await crowd(here, Backend([ok(FRESH, body=b"")]), [get(method="HEAD")] * 100)
        assert counted(answers) == {Result.MISS: 1, Result.COLLAPSED: 99}


@pytest.mark.parametrize(
    "said",
    [
        [("Cache-Control", "private")],
        [("Cache-Control", "no-store")],
        [("Cache-Control", "max-age=100"), ("Set-Cookie", "a=1")],
        [("Cache-Control", "public, max-age=100"), ("Vary", "Authorization")],
        [("Cache-Control", "max-age=100")],
        [],
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_what_is_for_one_goes_to_the_backend_at_once(said: Any, streamed: bool) -> None:
    """Answers that are not for all: who waited asks the backend himself, all side by side, and nobody waits again."""
    async with site() as here:
        first, rest = asyncio.Event(), asyncio.Event()
        heads = 0

        async def fetch(headers: Any) -> Fetched:
            nonlocal heads
            heads += 1
            number = heads
            await (first if number == 1 else rest).wait()
            mine = str(number).encode()
            return ok(*said, body=Body(mine) if streamed else mine)

        tasks = [asyncio.ensure_future(here.cache.fetch(NAMED, fetch)) for _ in range(100)]
        await eventually(lambda: heads == 1)
        first.set()
        await eventually(lambda: heads == 100)  # none of the others has an answer yet
        rest.set()
        answers = await asyncio.gather(*tasks)
        assert {await read(answer) for answer in answers} == {str(number).encode() for number in range(1, 101)}
        rest.clear()
        later = [asyncio.ensure_future(here.cache.fetch(NAMED, fetch)) for _ in range(3)]
        await eventually(lambda: heads == 103)
        rest.set()
        for task in later:
            await read(await task)


async def test_shyness_ends() -> None:
    """After `shy` seconds equal requests are one again; an answer for all ends it before."""
    async with site(shy=10.0) as here:
        backend = Backend([ok(), ok()])
        await here.results(backend, NAMED)
        here.clock.now += 10
        backend = Backend([ok(PUBLIC)])
        assert counted(await crowd(here, backend, [NAMED] * 3)) == {Result.MISS: 1, Result.COLLAPSED: 2}
        await here.results(Backend([ok()]), get(target="/b", authenticated=True))
        await here.results(Backend([ok(PUBLIC)]), get(target="/b", authenticated=True))
        assert len(here.cache._shy) == 0


async def test_conditions_of_the_shy_reach_the_backend() -> None:
    """What will hardly be stored is asked for as the client asked, so that the backend may say 304."""
    async with site() as here:
        await here.results(Backend([ok()]), NAMED)
        asked = get(("If-None-Match", '"v1"'), authenticated=True)
        backend = Backend([ok(TAG, status=304)])
        answer = await here.ask(backend, asked)
        assert (answer.status, answer.result) == (304, Result.BYPASS)
        assert backend.heads[0]["If-None-Match"] == '"v1"'


async def test_long_polls_remember_the_path() -> None:
    """A poll whose path gave answers for one only does not wait for others, though its query is new."""
    async with site() as here:
        await here.results(Backend([ok()]), get(target="/a?cursor=1", authenticated=True, held=True))
        backend = Backend([ok()])
        await crowd(here, backend, [get(target="/a?cursor=2", authenticated=True, held=True)] * 3, fetches=3)


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_nameless_share_what_is_silent(streamed: bool) -> None:
    """A public route without claims: those who wait at the same time share an answer that says nothing; nobody later."""
    async with site() as here:
        backend = Backend([ok(body=Body(b"one") if streamed else b"one")])
        answers = await crowd(here, backend, [get()] * 100)
        assert counted(answers) == {Result.MISS: 1, Result.COLLAPSED: 99}
        backend = Backend([ok(body=b"two")])
        assert counted(await crowd(here, backend, [get()] * 100)) == {Result.MISS: 1, Result.COLLAPSED: 99}
        assert len(here.cache.store) == 0


@pytest.mark.parametrize("status", [201, 302, 400, 404, 500, 503])
async def test_the_nameless_share_errors(status: int) -> None:
    """So do they with whatever status the backend answers."""
    async with site() as here:
        answers = await crowd(here, Backend([ok(status=status)]), [get()] * 10)
        assert {answer.status for answer, _ in answers} == {status}
        assert counted(answers)[Result.COLLAPSED] == 9


@pytest.mark.parametrize(
    "said",
    [
        ("Cache-Control", "no-store"),
        ("Cache-Control", "private"),
        ("Cache-Control", 'private="x"'),
        ("Cache-Control", "no-cache"),
        ("Cache-Control", "max-age=0, must-revalidate"),
        ("Cache-Control", "max-age=0, proxy-revalidate"),
        ("Set-Cookie", "a=1"),
        ("Vary", "*"),
        ("Content-Type", "text/event-stream"),
    ],
)
async def test_the_nameless_share_nothing_that_forbids_it(said: Any) -> None:
    """What a directive forbids to be used for others, or never ends, is not shared with anybody."""
    async with site() as here:
        answers = await crowd_of_all(here, Backend([ok(said)]), [get()] * 10)
        assert counted(answers) == {Result.MISS: 10}


async def crowd_of_all(here: Site, backend: Backend, requests: list[CacheRequest]) -> list[tuple[CacheAnswer, bytes]]:
    answers = await crowd(here, backend, requests)
    assert len(backend.heads) == len(requests)
    return answers


@pytest.mark.parametrize(
    "request_",
    [get(("Cookie", "a=1")), get(("Authorization", "Bearer a")), get(anonymous=False), get(("Cookie", "a=1"), anonymous=False)],
)
async def test_whoever_has_a_name_shares_nothing_that_is_silent(request_: CacheRequest) -> None:
    """Cookie, Authorization or forwarded claims: only what says that it is for all is."""
    async with site() as here:
        await crowd_of_all(here, Backend([ok()]), [request_] * 10)


async def test_named_and_nameless_do_not_wait_for_each_other() -> None:
    """One with a cookie and one without are two fetches."""
    async with site() as here:
        answers = await crowd(here, Backend([ok(FRESH)]), [get(("Cookie", "a=1")), get()], fetches=2)
        assert counted(answers) == {Result.MISS: 2}


async def test_without_collapsing() -> None:
    """`collapse: false`: each miss is a fetch; what is stored still answers."""
    async with site(collapse=False) as here:
        backend = Backend([ok(FRESH)])
        assert counted(await crowd(here, backend, [get()] * 5, fetches=5)) == {Result.MISS: 5}
        assert await here.results(backend, get()) == [Result.HIT]


async def test_what_varies_is_not_shared() -> None:
    """Vary that first shows in the answer: who differs asks for himself; once it is known, the like wait for the like."""
    async with site() as here:
        said = (FRESH, ("Vary", "X"))
        backend = Backend([ok(*said)])
        answers = await crowd(here, backend, [get(("X", "1")), get(("X", "1")), get(("X", "2"))])
        assert counted(answers) == {Result.MISS: 2, Result.COLLAPSED: 1}
        here.clock.now += 100
        backend = Backend([ok(*said)])
        answers = await crowd(here, backend, [get(("X", value)) for value in "112233"], fetches=3)
        assert counted(answers) == {Result.MISS: 3, Result.COLLAPSED: 3}


@pytest.mark.parametrize("wanted", ["no-cache", "max-age=0", "no-store"])
async def test_who_wants_it_new_does_not_wait(wanted: str) -> None:
    """A request that wants what is newer than itself does not take what was asked for earlier."""
    async with site() as here:
        await crowd(here, Backend([ok(FRESH)]), [get(), get(("Cache-Control", wanted))], fetches=2)


async def test_who_wants_it_fresher_asks_himself() -> None:
    """The answer must suit the one who waited, by his own Cache-Control."""
    async with site() as here:
        backend = Backend([ok(FRESH)])
        answers = await crowd(here, backend, [get(), get(("Cache-Control", "min-fresh=200"))])
        assert counted(answers) == {Result.MISS: 2}


async def test_polls_with_conditions_wait_for_their_like() -> None:
    """A held request's condition reaches the backend, and a 304 is for those who asked with the same one."""
    async with site() as here:
        await here.results(Backend([ok(FRESH, TAG)]), get(held=True))
        one, two = get(("If-None-Match", '"v1"'), held=True), get(("If-None-Match", '"v0"'), held=True)
        backend = Backend([ok(TAG, status=304)])
        answers = await crowd(here, backend, [one, one, two, two, two], fetches=2)
        assert counted(answers) == {Result.MISS: 2, Result.COLLAPSED: 3}
        assert {answer.status for answer, _ in answers} == {304}
        assert {head["If-None-Match"] for head in backend.heads} == {'"v1"', '"v0"'}


async def test_a_stale_poll_is_asked_anew() -> None:
    """A held request is never sent with validators of our own: the backend would wait for a change."""
    async with site() as here:
        backend = Backend([ok(("Cache-Control", "max-age=9"), TAG)])
        await here.results(backend, get(held=True))
        here.clock.now += 10
        assert await here.results(backend, get(held=True)) == [Result.MISS]
        assert "If-None-Match" not in backend.heads[1]


# --- large ones ---


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_large_answer_is_streamed_to_the_one_who_asked(declared: bool, streamed: bool) -> None:
    """Over the bound: not stored, streamed to the leader; who waited asks the backend himself, and nobody waits again."""
    async with site(max_answer_bytes=10) as here:
        said = [FRESH, *([("Content-Length", "18")] if declared else [])]
        backend = Backend(
            [ok(*said, body=Body(b"123456", b"789abc", b"defghi") if streamed else b"123456789abcdefghi") for _ in "123"]
        )
        answers = await crowd(here, backend, [get()] * 3)
        assert [body for _, body in answers] == [b"123456789abcdefghi"] * 3
        assert (counted(answers), len(backend.heads), len(here.cache.store)) == ({Result.MISS: 3}, 3, 0)
        assert len(here.cache._shy) == 1


async def test_a_large_answer_comes_at_the_readers_pace() -> None:
    """Beyond the bound nothing is read from the backend that the client has not asked for; giving up closes it."""
    async with site(max_answer_bytes=10) as here:
        body = Body(*[b"12345678"] * 100)
        answer = await here.ask(Backend([ok(FRESH, body=body)]), get())
        await eventually(lambda: not here.cache._tasks)
        assert body.asked == 2
        assert not isinstance(answer.body, bytes)
        assert [await anext(answer.body) for _ in "123"] == [b"12345678"] * 3
        assert (body.asked, body.closed) == (3, False)
        await answer.close()
        assert body.closed
        with pytest.raises(StopAsyncIteration):
            await anext(answer.body)


async def test_a_leader_reads_as_it_comes() -> None:
    """The leader has each chunk when the backend sent it, not when the answer is whole."""
    async with site() as here:
        more = asyncio.Event()
        answer = await here.ask(Backend([ok(FRESH, body=Body(b"a", more, b"b"))]), get())
        assert not isinstance(answer.body, bytes)
        assert await anext(answer.body) == b"a"
        more.set()
        assert await read(answer) == b"b"
        assert await here.results(Backend([ok()]), get()) == [Result.HIT]


async def test_a_body_that_takes_too_long_is_not_waited_for() -> None:
    """`patience` after the head those who wait go to the backend; the answer is still stored when it is whole."""
    async with site(patience=0.0) as here:
        more = asyncio.Event()
        backend = Backend([ok(FRESH, body=Body(b"a", more, b"b")), ok(FRESH, body=b"two")])
        tasks = [ask(here, backend, get()) for _ in "12"]
        assert (await tasks[1])[1] == b"two"
        more.set()
        assert (await tasks[0])[1] == b"ab"


# --- leaving and failing ---


async def test_a_leader_who_leaves_leaves_the_fetch_to_others() -> None:
    """Cancelling the first request does not end the fetch while others wait for it."""
    async with site() as here:
        backend = Backend([ok(FRESH)], asyncio.Event())
        tasks = [ask(here, backend, get()) for _ in "123"]
        await eventually(lambda: backend.heads)
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        assert backend.gate is not None
        backend.gate.set()
        assert counted([await task for task in tasks[1:]]) == {Result.COLLAPSED: 2}
        assert len(backend.heads) == 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_leader_who_left_before_an_answer_for_one(streamed: bool) -> None:
    """What then is for nobody is closed, and who waited asks himself."""
    async with site() as here:
        body = Body(b"one")
        backend = Backend([ok(body=body if streamed else b"one"), ok(body=b"two")], asyncio.Event())
        tasks = [ask(here, backend, NAMED) for _ in "12"]
        await eventually(lambda: backend.heads)
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        assert backend.gate is not None
        backend.gate.set()
        assert (await tasks[1])[1] == b"two"
        assert body.closed == streamed


async def test_a_leader_who_left_before_a_large_answer() -> None:
    """So is what turns out to be too large."""
    async with site(max_answer_bytes=10) as here:
        body = Body(b"12345678", b"12345678", b"12345678")
        backend = Backend([ok(FRESH, body=body), ok(FRESH, body=b"two")], asyncio.Event())
        tasks = [ask(here, backend, get()) for _ in "12"]
        await eventually(lambda: backend.heads)
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        assert backend.gate is not None
        backend.gate.set()
        assert (await tasks[1])[1] == b"two"
        assert body.closed


async def test_the_last_one_ends_the_fetch() -> None:
    """When nobody waits any more the fetch is cancelled, and the next one begins another."""
    async with site() as here:
        backend = Backend([ok(FRESH)], asyncio.Event())
        tasks = [ask(here, backend, get()) for _ in "123"]
        await eventually(lambda: backend.heads)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert here.cache._flights == {}
        await eventually(lambda: not here.cache._tasks)
        assert backend.done == 0
        assert counted(await crowd(here, Backend([ok(FRESH)]), [get()])) == {Result.MISS: 1}


async def test_giving_up_a_body_ends_the_fetch() -> None:
    """A leader who closes the body ends the fetch if nobody else wants it, else others still get all of it."""
    for others in (0, 2):
        async with site() as here:
            more = asyncio.Event()
            body = Body(b"a", more, b"b")
            backend = Backend([ok(FRESH, body=body)], asyncio.Event())
            leader = asyncio.ensure_future(here.ask(backend, get()))
            await eventually(lambda backend=backend: backend.heads)
            waiting = [ask(here, backend, get()) for _ in range(others)]
            assert backend.gate is not None
            backend.gate.set()
            answer = await leader
            await answer.close()
            await answer.close()
            more.set()
            assert [body for _, body in await asyncio.gather(*waiting)] == [b"ab"] * others
            await eventually(lambda here=here: not here.cache._tasks)
            assert body.closed == (not others)


async def test_a_leader_cancelled_when_the_head_is_there() -> None:
    """An answer that nobody took is closed."""
    async with site() as here:
        body = Body(b"one")
        backend = Backend([ok(("Cache-Control", "no-store"), body=body)], asyncio.Event())
        task = ask(here, backend, get())
        await eventually(lambda: backend.heads)
        [flight] = here.cache._flights["https://api.example.com/a"].values()
        assert backend.gate is not None
        backend.gate.set()
        # Cancelled in the very turn in which the head is shown, before the leader runs.
        show = flight.show
        flight.show = lambda shown: (show(shown), task.cancel())  # type: ignore[method-assign,func-returns-value,assignment]
        await asyncio.wait([task])
        assert task.cancelled()
        assert body.closed


@pytest.mark.parametrize("error", [UpstreamFailed("gone"), OSError("broken"), ZeroDivisionError()])
async def test_a_failing_leader(error: Exception) -> None:
    """The leader gets the error, everybody else tries once himself."""
    async with site() as here:
        backend = Backend([error, ok(body=b"two")])
        backend.gate = asyncio.Event()
        tasks = [ask(here, backend, get()) for _ in range(10)]
        await eventually(lambda: backend.heads)
        backend.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[0] is error
        assert [one[1] for one in results[1:] if not isinstance(one, BaseException)] == [b"two"] * 9


@pytest.mark.parametrize("error", [UpstreamFailed("gone"), OSError("broken")])
async def test_a_body_that_breaks(error: Exception) -> None:
    """The leader gets what came and the error, nothing is stored, everybody else tries once himself."""
    async with site() as here:
        backend = Backend([ok(FRESH, body=Body(b"a", error)), ok(("Cache-Control", "no-store"), body=b"two")])
        answers = [ask(here, backend, get()) for _ in "123"]
        results = await asyncio.gather(*answers, return_exceptions=True)
        assert results[0] is error
        assert [one[1] for one in results[1:] if not isinstance(one, BaseException)] == [b"two"] * 2
        assert len(here.cache.store) == 0


async def test_all_fail() -> None:
    """Where the backend fails for everybody, everybody is told."""
    async with site() as here:
        backend = Backend([UpstreamFailed("gone")])
        results = await asyncio.gather(*[ask(here, backend, get()) for _ in range(10)], return_exceptions=True)
        assert all(isinstance(one, UpstreamFailed) for one in results)


async def test_a_stale_answer_stands_in_for_all() -> None:
    """stale-if-error: one failing fetch serves everybody who waited for it."""
    async with site() as here:
        said = ("Cache-Control", "max-age=9, stale-if-error=100")
        await here.results(Backend([ok(said)]), get())
        here.clock.now += 10
        answers = await crowd(here, Backend([UpstreamFailed("gone"), ok(body=b"two")]), [get()] * 10)
        assert counted(answers) == {Result.STALE: 10}


async def test_one_validation_for_all() -> None:
    """A 304 to one is for everybody who waited."""
    async with site() as here:
        await here.results(Backend([ok(("Cache-Control", "max-age=9"), TAG)]), get())
        here.clock.now += 10
        backend = Backend([ok(FRESH, TAG, status=304)])
        assert counted(await crowd(here, backend, [get()] * 10)) == {Result.REVALIDATED: 1, Result.COLLAPSED: 9}


async def test_validation_behind_the_clients_back() -> None:
    """stale-while-revalidate: one fetch in the background, however many ask; then it is fresh again."""
    async with site() as here:
        await here.results(Backend([ok(("Cache-Control", "max-age=9, stale-while-revalidate=50"), TAG)]), get())
        here.clock.now += 10
        backend = Backend([ok(FRESH, TAG, status=304)], asyncio.Event())
        assert await here.results(backend, get(), get(), get()) == [Result.STALE] * 3
        await eventually(lambda: len(backend.heads) == 1)
        assert backend.gate is not None
        backend.gate.set()
        await eventually(lambda: not here.cache._tasks)
        assert await here.results(backend, get()) == [Result.HIT]


@pytest.mark.parametrize("answer", [UpstreamFailed("gone"), OSError("broken"), "private", "large", "whole"])
async def test_a_background_validation_that_brings_something_else(answer: Any, caplog: Any) -> None:
    """It fails without harm, and what it cannot store is closed; what nobody expects is logged."""
    async with site(max_answer_bytes=10) as here:
        await here.results(Backend([ok(("Cache-Control", "max-age=9, stale-while-revalidate=50"))]), get())
        here.clock.now += 10
        body = Body(b"1234567", b"1234567", b"1234567")
        backend = Backend(
            [
                answer
                if isinstance(answer, Exception)
                else ok(
                    ("Cache-Control", "private" if answer == "private" else "max-age=9"),
                    body=b"2" if answer == "whole" else body,
                )
            ]
        )
        assert await here.results(backend, get()) == [Result.STALE]
        await eventually(lambda: not here.cache._tasks)
        assert body.closed == (answer in {"private", "large"})
        assert bool(caplog.records) == isinstance(answer, OSError)


async def test_a_304_for_the_client_lets_the_answer_be_stored() -> None:
    """A client who has it already is told so at the head; the body goes on into the store."""
    async with site() as here:
        more = asyncio.Event()
        backend = Backend([ok(FRESH, TAG, body=Body(b"a", more, b"b"))])
        answer = await here.ask(backend, get(("If-None-Match", '"v1"')))
        assert answer.status == 304
        more.set()
        await eventually(lambda: not here.cache._tasks)
        assert await read(await here.ask(backend, get())) == b"ab"


async def test_what_a_write_overtakes_is_not_stored() -> None:
    """4.4: a fetch that began before a successful write is neither stored nor joined after it."""
    async with site() as here:
        backend = Backend([ok(FRESH)], asyncio.Event())
        task = ask(here, backend, get())
        await eventually(lambda: backend.heads)
        await here.results(Backend([ok(status=204)]), get(method="DELETE"))
        assert counted(await crowd(here, Backend([ok(("Cache-Control", "no-store"))]), [get()])) == {Result.MISS: 1}
        assert backend.gate is not None
        backend.gate.set()
        await task
        assert len(here.cache.store) == 0


async def test_neither_is_a_validation_that_a_write_overtakes() -> None:
    """4.4: nor is what a validation says that began before it."""
    async with site() as here:
        await here.results(Backend([ok(("Cache-Control", "max-age=9"), TAG)]), get())
        here.clock.now += 10
        backend = Backend([ok(FRESH, TAG, status=304)], asyncio.Event())
        task = ask(here, backend, get())
        await eventually(lambda: backend.heads)
        await here.results(Backend([ok(status=204)]), get(method="DELETE"))
        assert backend.gate is not None
        backend.gate.set()
        assert (await task)[0].result is Result.REVALIDATED
        assert len(here.cache.store) == 0


@pytest.mark.parametrize("begun", [False, True])
async def test_closing(begun: bool) -> None:
    """`close` ends the fetches; who waited for one asks the backend himself."""
    async with site() as here:
        backend = Backend([ok(body=b"two")], asyncio.Event())
        tasks = [ask(here, backend, get()) for _ in "12"]
        await eventually(lambda: backend.heads if begun else here.cache._tasks)
        await here.cache.close()
        assert backend.gate is not None
        backend.gate.set()
        assert [(await task)[1] for task in tasks] == [b"two"] * 2


@pytest.mark.parametrize("turns", range(12))
@pytest.mark.parametrize("said", [[FRESH], [("Cache-Control", "no-store")], []])
async def test_cancelling_at_every_await(turns: int, said: Any) -> None:
    """Wherever a request is cancelled nothing is left under way, and the others get their answers."""
    async with site() as here:
        bodies: list[Body] = []

        async def fetch(headers: Any) -> Fetched:
            await asyncio.sleep(0)
            bodies.append(Body(b"a", b"b"))
            return ok(*said, body=bodies[-1])

        async def asked() -> bytes:
            answer = await here.cache.fetch(get(), fetch)
            try:
                return await read(answer)
            finally:
                await answer.close()

        tasks = [asyncio.ensure_future(asked()) for _ in "123"]
        for _ in range(turns):
            await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.wait(tasks)
        assert [task.result() for task in tasks[1:]] == [b"ab"] * 2
        await eventually(lambda: not here.cache._tasks)
        assert here.cache._flights == {}
        assert all(body.closed or not body.parts for body in bodies)


async def test_a_silent_answer_that_nobody_waits_for_is_handed_on() -> None:
    """It is streamed as it is, without a copy, and the next ones may still wait for each other."""
    async with site() as here:
        body = Body(b"one")
        answer = await here.ask(Backend([ok(body=body)]), get())
        assert answer.body is body
        assert len(here.cache._shy) == 0


async def test_a_failure_makes_nobody_shy() -> None:
    """What a backend says when it fails says nothing of what it will answer."""
    async with site() as here:
        await here.results(Backend([ok(status=503)]), NAMED)
        assert len(here.cache._shy) == 0


async def test_a_reader_who_gives_up_before_it_is_too_large() -> None:
    """What a leader gave up, and then turns out to be too large for those who wait, is closed."""
    async with site(max_answer_bytes=10) as here:
        more = asyncio.Event()
        body = Body(b"12345678", more, b"12345678")
        backend = Backend([ok(FRESH, body=body), ok(FRESH, body=b"two")], asyncio.Event())
        leader = asyncio.ensure_future(here.ask(backend, get()))
        await eventually(lambda: backend.heads)
        waiting = ask(here, backend, get())
        assert backend.gate is not None
        backend.gate.set()
        await (await leader).close()
        more.set()
        assert (await waiting)[1] == b"two"
        assert body.closed
