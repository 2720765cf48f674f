"""Lines, access entries, process logs: what is in them, what never is, and that nothing blocks or raises."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.server import accesslog
from gateway.server.accesslog import (
    REQUEST_ID,
    AccessLog,
    JsonFormatter,
    Lines,
    encode,
    log_as_json,
    redact,
    timestamp,
)

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.abcDEF-_123"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Make a pipe of one page; reading from it does not block."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    yield reading, writing
    for end in (reading, writing):
        try:
            os.close(end)
        except OSError:
            continue


def content(reading: int) -> bytes:
    """Read what is in the pipe."""
    try:
        return os.read(reading, 1 << 20)
    except BlockingIOError:
        return b""


class TestLines:
    async def test_written_at_the_end_of_the_turn(self, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
        """Lines of one turn of the loop go out together, in order, without any timer."""
        writes: list[bytes] = []
        monkeypatch.setattr(accesslog.os, "write", lambda _fd, data: writes.append(data) or len(data))
        lines = Lines(pipe[1])
        for number in range(3):
            lines.add(b"line %d\n" % number)
        assert writes == []
        assert repr(lines) == "Lines(3 lines, 21 bytes pending)"
        await asyncio.sleep(0)
        assert writes == [b"line 0\nline 1\nline 2\n"]
        assert repr(lines) == "Lines(0 lines, 0 bytes pending)"

    def test_without_a_loop_at_once(self, pipe: tuple[int, int]) -> None:
        """Before and after the loop runs, a line is simply written."""
        Lines(pipe[1]).add(b"x\n")
        assert content(pipe[0]) == b"x\n"

    async def test_a_reader_that_stops_does_not_block(self, pipe: tuple[int, int]) -> None:
        """A full pipe holds nothing up; when it is read again, everything comes, in order."""
        dropped: list[None] = []
        lines = Lines(pipe[1], on_dropped=lambda: dropped.append(None))
        expected = [b"%05d %s\n" % (number, b"x" * 93) for number in range(500)]
        for line in expected:
            lines.add(line)
        await asyncio.sleep(0)
        assert lines._lines
        seen = b""
        async with asyncio.timeout(20):
            while len(seen) < 50_000:
                seen += content(pipe[0])
                lines.flush()
                await asyncio.sleep(0)
        assert seen == b"".join(expected)
        assert dropped == []
        lines.close()

    async def test_tried_again_by_itself(self, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
        """What was left over needs no further line to get out."""
        monkeypatch.setattr(accesslog, "RETRY_SECONDS", 0.001)
        lines = Lines(pipe[1])
        for _ in range(10):
            lines.add(b"x" * 1023 + b"\n")
        seen = b""
        async with asyncio.timeout(10):
            while len(seen) < 10_240:
                await asyncio.sleep(0)
                seen += content(pipe[0])
        assert repr(lines) == "Lines(0 lines, 0 bytes pending)"

    async def test_beyond_the_bound_lines_are_dropped_and_counted(self, pipe: tuple[int, int]) -> None:
        """Memory stays bounded, and the operator learns what is missing."""
        dropped: list[None] = []
        lines = Lines(pipe[1], max_pending=1_000, on_dropped=lambda: dropped.append(None))
        for _ in range(30):
            lines.add(b"x" * 99 + b"\n")
        assert len(dropped) == 20
        lines.close()
        assert len(content(pipe[0])) == 1_000

    def test_a_line_longer_than_the_pipe(self, pipe: tuple[int, int]) -> None:
        """It is written in parts, without a loop as the reader makes room."""
        lines = Lines(pipe[1])
        lines.add(b"y" * 10_000 + b"\n")
        seen = content(pipe[0])
        while len(seen) < 10_001:
            lines.flush()
            seen += content(pipe[0])
        assert seen == b"y" * 10_000 + b"\n"

    async def test_close_cancels_and_counts(self, pipe: tuple[int, int]) -> None:
        """At the end of the process what the pipe does not take is given up."""
        dropped: list[None] = []
        lines = Lines(pipe[1], on_dropped=lambda: dropped.append(None))
        for _ in range(3):
            lines.add(b"z" * 4_095 + b"\n")
        lines.close()
        assert len(dropped) == 2
        assert lines._scheduled is None

    async def test_reader_gone(self, pipe: tuple[int, int]) -> None:
        """A broken pipe and a closed descriptor lose lines and nothing else."""
        dropped: list[None] = []
        lines = Lines(pipe[1], on_dropped=lambda: dropped.append(None))
        os.close(pipe[0])
        lines.add(b"x\n")
        await asyncio.sleep(0)
        os.close(pipe[1])
        lines.add(b"x\n")
        await asyncio.sleep(0)
        assert len(dropped) == 2
        assert repr(lines) == "Lines(0 lines, 0 bytes pending)"


class Kept:
    """Stands for Lines; keeps the last line decoded."""

    def __init__(self) -> None:
        self.raw = b""

    def add(self, line: bytes) -> None:
        self.raw = line

    @property
    def entry(self) -> dict[str, Any]:
        assert self.raw.count(b"\n") == 1
        return json.loads(self.raw)


def write(log: AccessLog, **changes: Any) -> None:
    """Write an ordinary request with some changes."""
    facts: dict[str, Any] = {
        "request_id": "r-1",
        "client": "192.0.2.1",
        "method": "GET",
        "target": "/v1/subscribe?channel=chat%2F42&wait=30&cursor=AbCdEf&ticket=tttt&token=uuuu",
        "status": 200,
        "sent": 512,
        "duration": 1.23456789,
    }
    log.write(**facts | changes)


class TestAccessLog:
    def test_entry(self) -> None:
        """Everything an operator asks for, in one object."""
        kept = Kept()
        log = AccessLog(kept, clock=lambda: 1_795_334_400.0629)
        write(log, code="messages", transport="lane", issuer="main", subject="ann", sample=0.5)
        assert kept.entry == {
            "time": "2026-11-22T08:00:00.062Z",
            "event": "request",
            "request_id": "r-1",
            "client": "192.0.2.1",
            "method": "GET",
            "path": "/v1/subscribe",
            "query": [["channel", "chat/42"], ["wait", "30"]],
            "status": 200,
            "code": "messages",
            "bytes": 512,
            "duration": 1.234568,
            "transport": "lane",
            "issuer": "main",
            "subject": "ann",
            "sample": 0.5,
        }

    def test_absent_facts_are_absent(self) -> None:
        """A request before identity has no subject, one without a query no query."""
        kept = Kept()
        write(AccessLog(kept), target="/livez")
        assert set(kept.entry) == {
            "time", "event", "request_id", "client", "method", "path", "status", "bytes", "duration"
        }  # fmt: skip

    @pytest.mark.parametrize(
        "target",
        [
            f"/v1/subscribe?cursor={JWT}&ticket={JWT}",
            f"/v1/subscribe?channel={JWT}",
            f"/v1/subscribe?channel=a&channel=x{JWT}",
            f"/v1/{JWT}",
            "/v1/subscribe?channel=Bearer%20eyJhbGciOi.eyJzdWIiOi.sig",
            "/v1/subscribe?channel=bearer+0123456789abcdef",
            "/v1/subscribe?from=%3Fcursor%3D0123456789abcdef",
        ],
    )
    def test_no_secret(self, target: str) -> None:
        """Wherever a client puts a token, it is not in the line."""
        kept = Kept()
        write(AccessLog(kept), target=target)
        for secret in (b"eyJ", b"sig", b"0123456789abcdef", b"AbCdEf", b"abcDEF"):
            assert secret not in kept.raw
        assert kept.entry["status"] == 200

    def test_query_is_configurable(self) -> None:
        """Only the names given are shown; one that is percent-encoded is not."""
        kept = Kept()
        write(AccessLog(kept, query=["wait"]), target="/p?channel=a&wait=1&w%61it=2&wait&=&&wait=")
        assert kept.entry["query"] == [["wait", "1"], ["wait", ""], ["wait", ""]]

    def test_bounds(self) -> None:
        """Long targets make no long lines."""
        kept = Kept()
        write(AccessLog(kept), target="/" + "p" * 9_000 + "?" + "&".join(["wait=" + "9" * 900] * 900), subject="s" * 900)
        assert len(kept.entry["path"]) == len(kept.entry["subject"]) == 512
        assert ("query" in kept.entry, kept.entry["cut"]) == (False, True)
        write(AccessLog(kept), target="/?" + "&".join(["wait=" + "9" * 900] * 5))
        assert [len(value) for _, value in kept.entry["query"]] == [512] * 5
        write(AccessLog(kept), target="/?" + "&".join(["wait=9"] * 900))
        assert len(kept.entry["query"]) == 64

    def test_subject_digest(self) -> None:
        """Equal subjects have equal digests, other issuers and other keys have others, and the name is not in the line."""
        kept = Kept()
        seen = []
        for key, issuer, subject in (
            (b"k", "a", "beatrix"),
            (b"k", "a", "beatrix"),
            (b"k", "b", "beatrix"),
            (b"l", "a", "beatrix"),
        ):
            write(AccessLog(kept, subjects="digest", secret=key), issuer=issuer, subject=subject)
            assert b"beatrix" not in kept.raw
            seen.append(kept.entry["subject"])
        assert seen[0] == seen[1]
        assert len(set(seen)) == 3
        assert re.fullmatch(r"[0-9a-f]{16}", seen[0])

    def test_digest_needs_a_key(self) -> None:
        """An unkeyed digest of a name is no protection."""
        with pytest.raises(ValueError, match="key"):
            AccessLog(Kept(), subjects="digest")

    def test_subject_omitted(self) -> None:
        kept = Kept()
        write(AccessLog(kept, subjects="omit"), issuer="main", subject="ann")
        assert "subject" not in kept.entry
        assert kept.entry["issuer"] == "main"

    def test_sampling(self) -> None:
        """Of polls answered 2xx the share is written, evenly; of others all."""
        log = AccessLog(Kept(), sample=0.25)
        chosen = [log.sampled(status) for status in (200, 204) * 20]
        assert sum(chosen) == 10
        assert chosen[:8] == [False, False, False, True] * 2
        assert all(log.sampled(status) for status in (199, 300, 400, 429, 503))
        assert not any(AccessLog(Kept(), sample=0.0).sampled(200) for _ in range(100))
        assert all(AccessLog(Kept()).sampled(200) for _ in range(100))

    def test_sampling_many_at_once(self) -> None:
        """Equal answers are sampled together as they would be one after the other; both ways share what is due."""
        log = AccessLog(Kept(), sample=0.25)
        assert [log.sampled_of(count, 200) for count in (3, 1, 0, 7, 8, 1_000)] == [0, 1, 0, 1, 2, 250]
        assert log.sampled(204)
        assert log.sampled_of(2, 204) == 0
        assert [log.sampled(204) for _ in range(2)] == [False, True]
        assert [log.sampled_of(5, status) for status in (199, 300, 429, 499)] == [5] * 4
        assert AccessLog(Kept(), sample=0.0).sampled_of(1_000, 200) == 0
        assert AccessLog(Kept()).sampled_of(1_000, 200) == 1_000

    @given(st.sampled_from((0.0, 0.125, 0.25, 0.5, 0.75, 1.0)), st.lists(st.integers(0, 40)))
    def test_sampling_many_is_sampling_each(self, share: float, counts: list[int]) -> None:
        """However the answers are bundled, the same number of lines is written in all."""
        together, apart = AccessLog(Kept(), sample=share), AccessLog(Kept(), sample=share)
        for count in counts:
            assert together.sampled_of(count, 200) == sum(apart.sampled(200) for _ in range(count))

    @given(st.text(), st.text(), st.integers(), st.floats(), st.text())
    def test_any_values(self, target: str, subject: str, status: int, duration: float, method: str) -> None:
        """Whatever the values are, one line of JSON comes out."""
        kept = Kept()
        write(AccessLog(kept), target=target, subject=subject, status=status, duration=duration, method=method)
        assert kept.entry["event"] == "request"

    def test_lone_surrogates(self) -> None:
        """Bytes of a head that are not UTF-8 are shown escaped."""
        kept = Kept()
        for subjects in ("plain", "digest"):
            write(AccessLog(kept, subjects=subjects, secret=b"k"), target="/\udcff", subject="\udcff")
            assert kept.entry["path"] == "/\\udcff"

    def test_a_line_is_written_in_one_piece(self) -> None:
        """Whatever a client sends: else the lines of several processes would mix on one pipe."""
        kept = Kept()
        fields = "&".join("channel=" + "x" * 500 for _ in range(64))
        write(AccessLog(kept), method="\udc80" * 600, target="/" + "\udc80" * 600 + "?" + fields, subject="\udc80" * 600)
        assert len(kept.raw) <= accesslog.PIPE_BUF
        assert (kept.entry["cut"], kept.entry["status"], "query" in kept.entry) == ("True", "200", False)
        assert kept.entry["path"].startswith("/\\udc80")

    def test_an_ordinary_line_is_not_cut(self) -> None:
        kept = Kept()
        write(AccessLog(kept), target="/v1/subscribe?" + "&".join(f"channel=chat%2F{n}" for n in range(32)))
        assert len(kept.entry["query"]) == 32
        assert "cut" not in kept.entry


class TestRedact:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (f"token {JWT} refused", "token [redacted] refused"),
            (f"a{JWT}b", "a[redacted]"),
            ("Authorization: Bearer abcdefgh12345", "Authorization: Bearer [redacted]"),
            ("BEARER abcdefgh12345", "BEARER [redacted]"),
            ("Authorization: Basic dXNlcjpwdw==", "Authorization: Basic [redacted]"),
            ("GET /v1/subscribe?cursor=abc&wait=1", "GET /v1/subscribe?cursor=[redacted]&wait=1"),
            ("/x?a=1&ticket=abc", "/x?a=1&ticket=[redacted]"),
            ("/x?access_token=abc HTTP/1.1", "/x?access_token=[redacted] HTTP/1.1"),
            ("/x?token=abc", "/x?token=[redacted]"),
            ("eyJ", "eyJ"),
            ("send a bearer token", "send a bearer token"),
            ("basic facts, cursor=open", "basic facts, cursor=open"),
            ("nothing at all", "nothing at all"),
        ],
    )
    def test_cases(self, text: str, expected: str) -> None:
        assert redact(text.encode()).decode() == expected

    @given(st.dictionaries(st.text(), st.text() | st.sampled_from([JWT, f"x?cursor={JWT}", f"Bearer {JWT}\\"])))
    def test_a_json_line_stays_one(self, entry: dict[str, str]) -> None:
        """Redaction never breaks the syntax around it."""
        line = redact(encode(entry))
        assert len(json.loads(line)) <= len(entry)
        assert b"eyJhbGciOi" not in line


def test_timestamp() -> None:
    """RFC 3339, UTC, milliseconds cut off."""
    assert timestamp(0.0) == "1970-01-01T00:00:00.000Z"
    assert timestamp(1_795_334_399.9999) == "2026-11-22T07:59:59.999Z"


class Rude:
    """Cannot even say what it is."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def formatted(make: Callable[[logging.Logger], None]) -> dict[str, Any]:
    """Return the one line that a call on a logger makes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("gateway.kafka.feed")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        make(logger)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
    assert stream.getvalue().count("\n") == 1
    return json.loads(stream.getvalue())


class TestJsonFormatter:
    def test_fields(self) -> None:
        """Time, level, logger and message, and what came as extra."""
        entry = formatted(lambda logger: logger.warning("lag of %s is %d", "chat", 7, extra={"topic": "chat"}))
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry.pop("time"))
        assert entry == {
            "level": "warning",
            "logger": "gateway.kafka.feed",
            "message": "lag of chat is 7",
            "topic": "chat",
        }

    def test_request_id(self) -> None:
        """What a request's task logs carries the request's id."""
        token = REQUEST_ID.set("r-9")
        assert formatted(lambda logger: logger.info("x"))["request_id"] == "r-9"
        REQUEST_ID.reset(token)
        assert "request_id" not in formatted(lambda logger: logger.info("x"))

    def test_traceback_stays_in_one_line_and_bounded(self) -> None:
        """The end of a long traceback is kept: it says what went wrong."""

        def fail(logger: logging.Logger) -> None:
            try:
                {}["x" * 10_000 + " the reason"]
            except KeyError:
                logger.exception("failed", stack_info=True)

        entry = formatted(fail)
        assert len(entry["error"]) == 8_192
        assert entry["error"].endswith("the reason'\n")
        assert "test_accesslog" in entry["stack"]
        assert "error" not in formatted(lambda logger: logger.error("x", exc_info=(None, None, None)))

    def test_secrets_are_cut_out(self) -> None:
        """A library that logs a head or a URL gives nothing away."""
        entry = formatted(lambda logger: logger.error("bad header: %r", {"Authorization": f"Bearer {JWT}"}))
        assert entry["message"] == "bad header: {'Authorization': 'Bearer [redacted]'}"

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (b"x", "b'x'"),
            ("\udcff", "\\udcff"),
            (2**70, str(2**70)),
            (Rude(), "<Rude whose repr raised RuntimeError>"),
            ({1: "x"}, "{1: 'x'}"),
        ],
    )
    def test_odd_extras(self, value: object, shown: str) -> None:
        """What JSON cannot hold becomes text."""
        assert formatted(lambda logger: logger.info("x", extra={"odd": value}))["odd"] == shown

    def test_arguments_that_do_not_fit(self) -> None:
        """A mistake in a log call loses neither the line nor the process."""
        assert formatted(lambda logger: logger.info("%d of %d", *[1]))["message"] == (
            "%d of %d (arguments do not fit: TypeError)"
        )


@pytest.fixture
def _logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    access = logging.getLogger("aiohttp.access").level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("aiohttp.access").setLevel(access)


@pytest.mark.usefixtures("_logging_restored")
class TestLogAsJson:
    def test_all_process_logs(self) -> None:
        """Every logger's lines, and warnings, are JSON; aiohttp's access lines, which hold the query, do not appear."""
        stream = io.StringIO()
        handler = log_as_json("INFO", stream)
        logging.getLogger("any.library").info("hello")
        logging.getLogger("any.library").debug("not this")
        logging.getLogger("aiohttp.access").info("GET /?cursor=x")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn("careful", UserWarning, stacklevel=1)
            logging.captureWarnings(False)
        entries = [json.loads(line) for line in stream.getvalue().splitlines()]
        assert [entry["logger"] for entry in entries] == ["any.library", "py.warnings"]
        assert logging.getLogger().handlers == [handler]

    def test_fields_of_the_process_are_in_every_line(self) -> None:
        """Which worker it is, for one."""
        stream = io.StringIO()
        log_as_json("INFO", stream, fields={"worker": 2})
        logging.getLogger("any.library").info("hello", extra={"worker": 3})
        [entry] = [json.loads(line) for line in stream.getvalue().splitlines()]
        assert (entry["message"], entry["worker"]) == ("hello", 2)

    def test_stderr_is_the_default(self) -> None:
        handler = log_as_json()
        assert isinstance(handler, logging.StreamHandler)
        assert handler.stream is sys.stderr


def test_to_a_file(tmp_path: Path) -> None:
    """Standard output redirected into a file, the whole way."""
    with (tmp_path / "access.log").open("wb") as file:
        log = AccessLog(Lines(file.fileno()))
        for number in range(1_000):
            write(log, request_id=str(number))
    lines = (tmp_path / "access.log").read_text().splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == [str(number) for number in range(1_000)]
