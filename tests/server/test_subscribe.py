"""Long polls, from the request to the answer."""

import asyncio
import re
import time
from email.utils import parsedate_to_datetime

import livegateway
import pytest
from livegateway import CONFIG, ISSUER, Live, live, parked, token
from waiting import eventually

from gateway.auth.mint import generate, mint
from gateway.devbroker.schemas import Api
from gateway.records import Record

NOT_LEADER = 6


@pytest.fixture(autouse=True, params=["lane", "aiohttp"])
def _lane(request, monkeypatch):
    """Keep connections, and have repeated polls move to lanes, or not: nothing else differs."""
    monkeypatch.setattr(livegateway, "FORCE_CLOSE", False)
    if request.param == "aiohttp":
        monkeypatch.setattr(livegateway, "CONFIG", CONFIG + "lane: {enabled: false}\n")


def linked(reply) -> str:
    """Return the target of the Link field."""
    link = reply.headers["Link"]
    assert link.startswith("<"), link
    assert link.endswith('>; rel="next"'), link
    return link[1 : -len('>; rel="next"')]


# --- what an answer looks like ---


async def test_an_answer_tells_all_about_a_record(gateway: Live):
    """Channel, partition, offset, timestamp, key, the headers that are let through, and the value."""
    headers = (("trace", b"abc"), ("secret", b"x"), ("trace", None), ("trace", b"\xff"))
    gateway.broker.append("news", 1, [Record(0, 1795334400000, b"42", b' {"text" : "hi"} ', headers)])
    before = time.time()
    reply = await gateway.poll("news", from_="earliest")
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.json == {
        "cursor": reply.cursor,
        "messages": [
            {
                "channel": "news",
                "partition": 1,
                "offset": 0,
                "timestamp": 1795334400000,
                "key": "42",
                "headers": [["trace", "abc"], ["trace", None], ["trace", {"base64": "/w=="}]],
                "value": {"text": "hi"},
            }
        ],
        "up_to_date": True,
    }
    assert abs(parsedate_to_datetime(reply.headers["Date"]).timestamp() - before) < 5


async def test_formats_broken_records_tombstones_and_null_keys(gateway: Live):
    """What is not as its channel says comes in base64, a deleted one as null, and nothing breaks the envelope."""
    broken = [b'{"a":1', b"\xff\xfe", b"]}", b"[" * 65 + b"]" * 65]
    gateway.broker.append("news", 0, [(None, value) for value in [*broken, b'"a\\u2028b"', b"12345678901234567890.10"]])
    gateway.broker.append("news", 0, [(b"\xff", None)])
    messages = (await gateway.poll("news", from_="earliest")).messages
    assert [message.get("encoding") for message in messages] == ["base64"] * 4 + [None] * 3
    assert [message["key"] for message in messages] == [None] * 6 + [{"base64": "/w=="}]
    assert messages[4]["value"] == "a\u2028b"
    assert messages[-1]["value"] is None
    assert messages[-1]["tombstone"] is True

    gateway.broker.append("notes", 0, [b"h\xc3\xa9\n", b"\xff", None])
    messages = (await gateway.poll("notes", from_="earliest")).messages
    assert [message["value"] for message in messages] == ["hé\n", "/w==", None]
    assert [message.get("encoding") for message in messages] == [None, "base64", None]

    gateway.broker.append("blobs", 0, [b"\x00\xff", b"", None])
    messages = (await gateway.poll("blobs", from_="earliest")).messages
    assert [message["value"] for message in messages] == ["AP8=", "", None]


async def test_view_value_shows_bare_values(gateway: Live):
    """Values without envelopes; what is not in the format says so itself; two channels of one format may be mixed."""
    gateway.broker.append("news", 0, [b'{"n":1}', b"broken", None])
    reply = await gateway.poll("news", from_="earliest", view="value")
    assert reply.json["messages"] == [{"n": 1}, {"value": "YnJva2Vu", "encoding": "base64"}, None]
    assert linked(reply) == f"/v1/subscribe?channel=news&view=value&wait=0&cursor={reply.cursor}"
    both = await gateway.poll("news", "scoped", token=token(scope="news:read"), from_="earliest", view="value", limit=6)
    assert len(both.json["messages"]) == 6


async def test_the_link_leads_on(gateway: Live):
    """All that was asked is in it, without `from`, and the cursor last; following it loses and doubles nothing."""
    claims = token(rooms=["a~b", "c"])
    first = await gateway.poll("chat/a~b", "chat/c", token=claims, limit=1, max_bytes=2048, linger=1, from_="earliest")
    target = linked(first)
    assert (
        target == f"/v1/subscribe?channel=chat/a~b&channel=chat/c&limit=1&max_bytes=2048&linger=1&wait=0&cursor={first.cursor}"
    )
    gateway.broker.append("chat", 0, [(b"c", b"1"), (b"a~b", b"2"), (b"c", b"3")])
    seen = []
    while True:
        target = re.sub("wait=[0-9]+", f"wait={0 if len(seen) == 3 else 10}", target)
        reply = await gateway.ask("GET", target, headers=gateway.bearer(claims))
        if reply.status == 204:
            break
        seen += reply.values
        assert len(reply.messages) == 1
        target = linked(reply)
    assert seen == [1, 2, 3]


async def test_a_long_cursor_is_in_no_link():
    """Over 1,024 characters the target would be too long for some proxies: the header says it alone."""
    async with live(topics={"wide": 256}, channels={"wide": {"topic": "wide"}}) as gateway:
        short = await gateway.poll("wide")
        assert len(short.cursor) < 1_024
        assert "Link" in short.headers
    async with live(topics={"wide": 256}, channels={"wide": {"topic": "wide"}}) as gateway:
        for partition in range(256):
            log = gateway.broker.cluster.partition("wide", partition).log
            log.start = log.end = 2**30
        reply = await gateway.poll("wide")
        assert reply.status == 204
        assert 1_024 < len(reply.cursor) <= 2_048
        assert "Link" not in reply.headers
        assert (await gateway.poll("wide", headers={"Cursor": reply.cursor})).status == 204


# --- waiting ---


async def test_a_record_ends_the_wait_at_once(gateway: Live):
    """A parked poll is answered when the record is there, and not at the end of any window."""
    polling = gateway.parking("news")
    await gateway.parked()
    gateway.broker.append("news", 0, [b"1"])
    began = time.monotonic()
    reply = await polling
    assert reply.values == [1]
    assert time.monotonic() - began < 0.5
    assert parked(gateway.gateway) == 0


async def test_the_wait_runs_out(gateway: Live):
    """204 with all that a client needs to go on, and no body."""
    began = time.monotonic()
    reply = await gateway.poll("news", wait=0.3)
    assert 0.25 < time.monotonic() - began < 2
    assert reply.status == 204
    assert reply.body == b""
    assert "Content-Length" not in reply.headers
    assert reply.headers["Cache-Control"] == "private, no-store"
    assert linked(reply).endswith(f"&wait=0.3&cursor={reply.cursor}")
    assert reply.headers["Date"]
    assert (await gateway.metrics())["gateway_answers_total{empty,poll}"] == 1


async def test_the_default_wait_is_the_operators(gateway: Live):
    """Without `wait` and without a preference a poll is held for `subscribe.default_wait`, at most `max_wait`."""
    async with live(subscribe={"default_wait": 0.2, "max_wait": 1}) as short:
        reply = await short.poll("news", wait=None)
        assert reply.status == 204
        assert linked(reply).count("wait=0.2") == 1
        preferred = await short.poll("news", wait=None, headers={"Prefer": "wait=30"})
        assert preferred.headers["Preference-Applied"] == "wait=1"
        assert "wait=" not in linked(preferred)
        assert (await short.poll("news", wait=1.01)).json["detail"] == "wait: expected seconds from 0 to 1."


async def test_linger_collects_what_follows(gateway: Live):
    """After the first record the answer waits a moment for the next ones; a full answer does not."""
    polling = gateway.parking("news", linger=400)
    await gateway.parked()
    gateway.broker.append("news", 0, [b"1"])
    await eventually(lambda: parked(gateway.gateway) == 0)
    gateway.broker.append("news", 1, [b"2"])
    reply = await polling
    assert sorted(reply.values) == [1, 2]
    began = time.monotonic()
    full = await gateway.poll("news", from_="earliest", limit=1, linger=1000)
    assert len(full.messages) == 1
    assert time.monotonic() - began < 0.9


async def test_linger_ends_before_the_token_does(gateway: Live):
    """What came in time is given in time: past its expiry a token gets nothing."""
    began = time.monotonic()
    polling = gateway.parking("news", linger=1000, token=token(lifetime=1.5))
    await gateway.parked()
    await eventually(lambda: time.monotonic() - began > 0.8)
    await gateway.publish("news", b"1")
    assert (await polling).values == [1]


async def test_linger_gives_what_there_was_if_nothing_follows(gateway: Live):
    """One record stays one record."""
    gateway.broker.append("news", 0, [b"1"])
    assert (await gateway.poll("news", from_="earliest", linger=1)).values == [1]


async def test_many_waiters_get_the_same_bytes(gateway: Live):
    """Equal polls at equal places share one answer, and each is counted."""
    first = await gateway.poll("news")
    polls = [gateway.parking("news", cursor=first.cursor) for _ in range(30)]
    await gateway.parked(30)
    gateway.broker.append("news", 0, [b'{"n":1}'])
    replies = await asyncio.gather(*polls)
    assert {reply.body for reply in replies} == {replies[0].body}
    metrics = await gateway.metrics()
    assert metrics["gateway_messages_total{news}"] == 30
    assert metrics["gateway_answers_total{messages,poll}"] == 30
    assert metrics["gateway_record_latency_seconds_count{poll}"] == 30
    assert metrics["gateway_sent_bytes_total{poll}"] == 30 * len(replies[0].body)


# --- how much ---


async def test_limit_and_max_bytes_bound_an_answer(gateway: Live):
    """Both are soft: at least one record comes, however large; `up_to_date` says that there is more."""
    gateway.broker.append("notes", 0, [b"x" * 800, b"y" * 800, b"z" * 8000])
    cursor, sizes = "", []
    reply = await gateway.poll("notes", from_="earliest", max_bytes=1024)
    while reply.status == 200:
        sizes.append([len(value) for value in reply.values])
        assert reply.json["up_to_date"] is (len(sizes) == 3)
        cursor = reply.cursor
        reply = await gateway.poll("notes", cursor=cursor, max_bytes=1024)
    assert sizes == [[800], [800], [8000]]
    limited = await gateway.poll("notes", from_="earliest", limit=2)
    assert len(limited.messages) == 2
    assert limited.json["up_to_date"] is False


async def test_urgent_channels_come_first(gateway: Live):
    """Priority, then time; and a channel that has something gets a place beside a chatty one."""
    gateway.broker.append("news", 0, [b"%d" % n for n in range(50)], timestamp_ms=1_000)
    gateway.broker.append("notes", 0, [(b"alert", b"fire")], timestamp_ms=2_000)
    reply = await gateway.poll("news", "alerts", from_="earliest", limit=10)
    assert [message["channel"] for message in reply.messages] == ["alerts"] + ["news"] * 9
    slow = await gateway.poll("news", "notes", from_="earliest", limit=10)
    assert [message["channel"] for message in slow.messages] == ["news"] * 9 + ["notes"]


async def test_a_long_scan_tells_its_progress():
    """History without a match: 200 without messages, a cursor further on, and `up_to_date` false."""
    async with live(
        subscribe={"scan_bytes": "64KiB"}, kafka={"tails_bytes": "1MiB", "tail_bytes": "64KiB", "cold_cache_bytes": "1MiB"}
    ) as gateway:
        for _ in range(30):
            gateway.broker.append("chat", 0, [(b"other", b"x" * 100_000)])
        gateway.broker.append("chat", 0, [(b"mine", b"1")])
        reply = await gateway.poll("chat/mine", token=token(rooms=["mine"]), from_="earliest")
        answers, cursors = 0, set()
        while not reply.messages:
            assert reply.status == 200
            assert reply.json["up_to_date"] is False
            cursors.add(reply.cursor)
            answers += 1
            reply = await gateway.poll("chat/mine", token=token(rooms=["mine"]), cursor=reply.cursor, wait=10)
        assert reply.values == [1]
        assert answers == len(cursors) > 0
        assert (await gateway.metrics())["gateway_answers_total{progress,poll}"] == answers


# --- where it starts ---


async def test_starts(gateway: Live):
    """`latest` is the default; `earliest`, a time and the N newest begin further back."""
    for n in range(6):
        gateway.broker.append("news", n % 2, [b"%d" % n], timestamp_ms=1_700_000_000_000 + n)
    assert (await gateway.poll("news")).status == 204
    assert (await gateway.poll("news", from_="latest")).status == 204
    assert (await gateway.poll("news", from_="earliest")).values == [0, 1, 2, 3, 4, 5]
    assert (await gateway.poll("news", from_="2023-11-14T22:13:20.003Z")).values == [3, 4, 5]
    assert (await gateway.poll("news", from_="2023-11-14T22:13:21Z")).status == 204
    assert (await gateway.poll("news", from_="-2")).values == [4, 5]
    assert (await gateway.poll("news", from_="-100")).values == [0, 1, 2, 3, 4, 5]


async def test_newest_counts_what_matches(gateway: Live):
    """`-N` looks for matching records only."""
    gateway.broker.append("chat", 0, [(b"mine" if n % 10 == 0 else b"other", b"%d" % n) for n in range(100)])
    reply = await gateway.poll("chat/mine", token=token(rooms=["mine"]), from_="-3")
    assert reply.values == [70, 80, 90]


# --- keys and claims ---


async def test_a_keyed_channel_shows_its_key_only(gateway: Live):
    """Room by room, subject by subject; an append to another key wakes nobody."""
    ann, bob = token("ann", rooms=["4", "42"]), token("bob", rooms=["42"])
    mine, other = gateway.parking("inbox", token=ann), gateway.parking("inbox", token=bob)
    room = gateway.parking("chat/4", "chat/42", token=ann)
    await gateway.parked(3)
    await gateway.publish("inbox", b'"for bob"', token=bob)
    await gateway.publish("chat/42", b'"in 42"', token=bob)
    assert (await other).values == ["for bob"]
    assert [(m["channel"], m["key"], m["value"]) for m in (await room).messages] == [("chat/42", "42", "in 42")]
    assert not mine.done()
    await gateway.publish("inbox", b'"for ann"', token=ann)
    reply = await mine
    assert reply.values == ["for ann"]
    assert len(reply.cursor) < 30


async def test_a_stolen_cursor_shows_the_thief_his_own_records(gateway: Live):
    """A cursor is a place, never a permission."""
    ann, bob = token("ann"), token("bob")
    start = await gateway.poll("inbox", token=ann, from_="earliest")
    await gateway.publish("inbox", b'"for ann"', token=ann)
    await gateway.publish("inbox", b'"for bob"', token=bob)
    assert (await gateway.poll("inbox", token=bob, cursor=start.cursor, wait=10)).values in (["for bob"], [])
    stolen = await gateway.poll("inbox", token=bob, from_="earliest", wait=10)
    assert stolen.values == ["for bob"]


# --- loss and resets ---


async def test_lost_names_what_is_gone(gateway: Live):
    """The offsets between the cursor and the log start, and then the records that are there."""
    gateway.broker.append("notes", 0, [b"%d" % n for n in range(10)])
    first = await gateway.poll("notes", from_="earliest", limit=3)
    gateway.broker.delete_records("notes", 0, 7)
    assert first.values == ["0", "1", "2"]

    async def told():
        reply = await gateway.poll("notes", cursor=first.cursor)
        return reply if "lost" in reply.json else None

    reply = await eventually(told)
    assert reply.json["lost"] == [{"channel": "notes", "partition": 0, "from": 3, "to": 7}]
    assert reply.values == ["7", "8", "9"]
    assert (await gateway.metrics())["gateway_lost_records_total{notes}"] == 4


async def test_lost_alone_is_worth_an_answer(gateway: Live):
    """Where nothing is left, the loss is told all the same, once."""
    gateway.broker.append("notes", 0, [b"1", b"2"])
    first = await gateway.poll("notes", from_="earliest", limit=1)
    gateway.broker.delete_records("notes", 0, -1)

    async def told():
        reply = await gateway.poll("notes", cursor=first.cursor)
        return reply if "lost" in reply.json else None

    reply = await eventually(told)
    assert (reply.status, reply.messages) == (200, [])
    assert (await gateway.poll("notes", cursor=reply.cursor)).status == 204
    assert (await gateway.metrics())["gateway_answers_total{lost,poll}"] == 1


async def test_on_loss_fail_refuses():
    """410 with what is lost, and a cursor at the earliest record that is left."""
    async with live(channels={"strict": {"topic": "notes", "format": "text", "on_loss": "fail"}}) as gateway:
        gateway.broker.append("notes", 0, [b"0", b"1", b"2"])
        first = await gateway.poll("strict", from_="earliest", limit=1)
        gateway.broker.delete_records("notes", 0, 2)

        async def refused():
            reply = await gateway.poll("strict", cursor=first.cursor)
            return reply if reply.status == 410 else None

        reply = await eventually(refused)
        assert reply.code == "cursor_expired"
        assert reply.json["lost"] == [{"channel": "strict", "partition": 0, "from": 1, "to": 2}]
        assert (await gateway.poll("strict", cursor=reply.json["cursor"])).values == ["2"]


@pytest.mark.parametrize(("policy", "values"), [("fail", None), ("earliest", ["new 0", "new 1"]), ("latest", [])])
async def test_a_topic_that_was_created_again(policy: str, values: list[str] | None):
    """409 with a fresh cursor, or what `on_reset` says: the old offsets mean nothing in the new log."""
    async with live(channels={"again": {"topic": "notes", "format": "text", "on_reset": policy}}) as gateway:
        gateway.broker.append("notes", 0, [b"0", b"1", b"2"])
        before = await gateway.poll("again", from_="earliest", limit=2)
        gateway.broker.delete_topic("notes")
        gateway.broker.create_topic("notes", 1)
        gateway.broker.append("notes", 0, [b"new 0", b"new 1"])

        await eventually(lambda: gateway.gateway.hub.topics["notes"].topic_id == gateway.broker.topic_id("notes"))
        reply = await gateway.poll("again", cursor=before.cursor)
        if values is None:
            assert reply.code == "cursor_reset"
            assert (await gateway.poll("again", cursor=reply.json["cursor"])).status == 204
        else:
            assert reply.values == values


async def test_a_poll_that_is_parked_learns_that_its_topic_was_created_again(gateway: Live):
    """It does not sleep on over a log that is gone."""
    gateway.broker.append("notes", 0, [b"0"])
    end = await gateway.poll("notes", from_="earliest")
    polling = gateway.parking("notes", cursor=end.cursor)
    await gateway.parked()
    gateway.broker.delete_topic("notes")
    gateway.broker.create_topic("notes", 1)
    assert (await polling).code == "cursor_reset"


async def test_a_cursor_ahead_of_the_log_is_refused_by_the_leader(gateway: Live):
    """The log was cut (an unclean election): only the leader may say so, and then it is 409 with the end."""
    gateway.broker.append("blobs", 0, [b"x"] * 5)
    async with live() as ahead:
        ahead.broker.append("blobs", 0, [b"x"] * 50)
        # The same topic id, as after restoring a broker from an older copy of its disk.
        ahead.broker.cluster.topic("blobs").topic_id = gateway.broker.topic_id("blobs")
        future = (await ahead.poll("blobs")).cursor
    reply = await gateway.poll("blobs", cursor=future)
    assert reply.code == "cursor_reset"
    assert (await gateway.poll("blobs", cursor=reply.json["cursor"])).status == 204


async def test_an_added_partition_is_read_whole(gateway: Live):
    """A cursor that does not name a partition reads it from its log start."""
    before = await gateway.poll("notes")
    polling = gateway.parking("notes", cursor=before.cursor)
    await gateway.parked()
    gateway.broker.add_partitions("notes", 2)
    gateway.broker.append("notes", 1, [b"first of the new partition"])
    reply = await polling
    assert reply.values == ["first of the new partition"]
    assert (await gateway.poll("notes", cursor=reply.cursor)).status == 204


async def test_a_topic_that_appears_later():
    """Polls on a topic that does not exist wait; when it is there, they get its first record."""
    async with live(topics={"other": 1}, channels={"later": {"topic": "later"}}) as gateway:
        polling = gateway.parking("later")
        await gateway.parked()
        gateway.broker.create_topic("later", 2)
        gateway.broker.append("later", 1, [b'"first"'])
        assert (await polling).values == ["first"]


async def test_a_subscription_that_is_too_wide():
    """More partitions than a cursor holds are refused at the first poll."""
    async with live(topics={"vast": 257}, channels={"vast": {"topic": "vast"}}) as gateway:
        reply = await gateway.poll("vast")
        assert reply.code == "subscription_too_wide"
        assert "257" in reply.json["detail"]


async def test_an_open_transaction_makes_nobody_spin(gateway: Live):
    """Nothing behind the last stable offset is told of; the commit wakes."""
    polling = gateway.parking("news")
    await gateway.parked()
    transaction = gateway.broker.transaction()
    transaction.append("news", 0, [b"1"])
    assert (await gateway.poll("news", from_="earliest")).status == 204
    await eventually(lambda: _unstable(gateway))
    assert not polling.done()
    transaction.commit()
    assert (await polling).values == [1]


async def _unstable(gateway: Live) -> bool:
    return (await gateway.metrics()).get("gateway_unstable_records{0,news}", 0) > 0


# --- Kafka is away ---


async def test_a_broker_that_was_never_there():
    """503 with Retry-After where nothing is known of the topic."""
    async with live() as gateway:
        await gateway.broker.stop()
        reply = await gateway.poll("news")
        assert reply.code == "broker_unavailable"
        assert int(reply.headers["Retry-After"]) >= 1


async def test_parked_polls_stay_while_the_broker_is_away(gateway: Live):
    """They get what is produced after it is back; the tails go on being served meanwhile."""
    first = await gateway.poll("news")
    polling = gateway.parking("news", cursor=first.cursor)
    await gateway.parked()
    await gateway.broker.stop()
    await eventually(lambda: _ready(gateway, 503))
    assert (await gateway.metrics())["gateway_ready"] == 0
    assert (await gateway.poll("news", cursor=first.cursor)).status == 204
    assert not polling.done()
    await gateway.broker.start()
    await eventually(lambda: _ready(gateway, 200))
    gateway.broker.append("news", 0, [b"1"])
    assert (await polling).values == [1]


async def _ready(gateway: Live, status: int) -> bool:
    return (await gateway.ready()).status == status


async def test_history_that_cannot_be_fetched_is_waited_for(gateway: Live):
    """A held poll tries again until its time is over; then it is told that the log cannot be reached."""
    gateway.gateway.kafka.archive._patience = 0.3
    gateway.broker.append("notes", 0, [b"old"])
    assert (await gateway.poll("notes")).status == 204
    with gateway.broker.faults.error(NOT_LEADER, Api.FETCH, topic="notes"):
        assert (await gateway.poll("notes", from_="earliest")).code == "broker_unavailable"
        held = gateway.parking("notes", from_="earliest")
        await gateway.parked()
    assert (await held).values == ["old"]


# --- the token's life ---


async def test_the_hold_ends_with_the_token(gateway: Live):
    """At its expiry the poll is an empty answer like others, and the next one is refused."""
    short = token(lifetime=1.5)
    began = time.monotonic()
    reply = await gateway.poll("news", token=short, wait=20)
    assert reply.status == 204
    assert 0.5 < time.monotonic() - began < 3
    assert "Connection" not in reply.headers or reply.cursor
    again = await gateway.poll("news", token=short, wait=20, cursor=reply.cursor)
    assert again.code == "token_expired"
    assert (await gateway.metrics())["gateway_answers_total{expired,poll}"] == 1


async def test_a_token_with_less_than_a_second_left_holds_nothing(gateway: Live):
    """A poll that its token would end at once is refused as expired; one that does not wait is answered."""
    dying = token(lifetime=0.9)
    assert (await gateway.poll("news", token=dying, wait=20)).code == "token_expired"
    assert (await gateway.poll("news", token=dying, wait=0)).status == 204


async def test_history_that_comes_after_the_expiry_is_not_told(gateway: Live):
    """Reading it took longer than the token lives: an empty answer at the same place, and nothing is lost."""
    gateway.broker.append("notes", 0, [b"old"])
    start = await gateway.poll("notes", from_="1970-01-01T00:00:01Z", limit=1)
    assert start.values == ["old"]
    gateway.gateway.kafka.archive.forget("notes")
    expired, read = asyncio.Event(), gateway.gateway.kafka.read
    asyncio.get_running_loop().call_later(1.3, expired.set)

    async def slowly(*place):
        await expired.wait()
        return await read(*place)

    gateway.gateway.kafka.read = slowly
    reply = await gateway.poll("notes", token=token(lifetime=1.2), from_="earliest", wait=20)
    assert reply.status == 204
    assert (await gateway.poll("notes", cursor=reply.cursor)).values == ["old"]
    assert (await gateway.metrics())["gateway_answers_total{expired,poll}"] == 1


async def test_a_withdrawn_key_ends_parked_polls(tmp_path):
    """204 for the polls of its tokens, and 401 at the next; polls of other keys stay."""
    file = tmp_path / "secret"
    file.write_text("the first secret of the issuer with a file")
    issuers = {"test": {"keys": [{"algorithm": "HS256", "file": str(file)}]}}
    claims = {"iss": ISSUER, "aud": "gateway", "sub": "ann", "exp": time.time() + 600}
    async with live(auth={"issuers": issuers}) as gateway:
        old = mint(file.read_text(), "HS256", claims)
        polling, other = gateway.parking("news", token=old), gateway.parking("news", token=token(other=True))
        await gateway.parked(2)
        file.write_text("the second secret, which is another one")
        await gateway.gateway._authenticator.load_files()
        reply = await polling
        assert reply.status == 204
        assert reply.cursor
        assert reply.headers["Connection"] == "close"
        assert not other.done()
        assert (await gateway.poll("news", token=old, cursor=reply.cursor)).code == "token_invalid"
        assert (await gateway.poll("news", token=mint(file.read_text(), "HS256", claims))).status == 204
        assert (await gateway.metrics())["gateway_answers_total{revoked,poll}"] == 1
        gateway.broker.append("news", 0, [b"1"])
        assert (await other).values == [1]


async def test_a_key_that_is_withdrawn_while_a_poll_looks(gateway: Live):
    """The poll was identified before and would have parked after it: it ends all the same."""
    with gateway.broker.faults.stall(Api.METADATA, topic="notes") as fault:
        looking = gateway.parking("notes")
        await fault.hit()
        [key] = gateway.gateway._authenticator._verifier.keys("test")
        gateway.gateway._authenticator._verifier.replace("test", [])
        gateway.gateway.parking.withdraw(key.ref)
    reply = await looking
    assert (reply.status, reply.headers["Connection"]) == (204, "close")
    assert (await gateway.metrics())["gateway_answers_total{revoked,poll}"] == 1


async def test_keys_that_cannot_be_fetched():
    """Whether the token is good cannot be told: 502, not 401, which would make a client throw its token away."""
    key = {"test": {"keys": [], "jwks_url": "http://127.0.0.1:9/keys", "algorithms": ["RS256"]}}
    issuer = generate("test", iss="https://id.test/", algorithm="RS256")
    async with live(auth={"issuers": key}) as gateway:
        reply = await gateway.poll("news", token=issuer.token("ann", now=time.time()))
        assert (reply.status, reply.code) == (502, "upstream_failed")
