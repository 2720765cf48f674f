"""What a gateway does with the messages that it passes on, as cases: bytes on both sides of it, and what they become.

A file in `cases/` is a list of cases. A case has `name`, `rfc` (the section that says so), `gateway` (a name in `gateways.yaml`;
main) and `request`, `seen`, `answer` and `got` or, where the order is another, `steps`. `each` makes one case of each of its
mappings, which lie over it. Each case is played twice, with what either side sends in one piece and in many; with `cut: false`
once, where pieces matter or time does.

A message (`request`, `answer`) is the text of its head, or a mapping: `raw`, the whole of it; or `head`; or `line` and `fields`,
which get a Host or what frames the body; and `body`. Line breaks are sent as CRLF; `${CR}`, `${LF}` and `${NUL}` are those bytes,
`${A*9}` is nine of them, `${token}` a good token, `${unique}` a text that no other play has; characters are sent as Latin-1. In
place of all, `pieces` is a list of such texts, which come in one by one.

What is expected, of `seen` at the backend and `got` at the client: `line`, `status`, `code`, `reason`, `fields` and `trailers`
(text, /pattern/, list of the values in their order, or null for none), `body`, `size`, `chunked`, `lacks` (texts that are nowhere),
`interim` (the statuses of 1xx answers before), `broken` (it is cut in its midst). A text stands for `line`, a number for `status`.
`seen: null`: the backend gets nothing.

At the end the connection is asked for something else, which has to get its own answer. With `closed: true` it has to be closed
instead, with nothing more on it; `closed: as told`: as its last answer says; `after: none`: the case has dealt with it. Then
nothing may be counted at the upstreams any more, and no connection to a backend may be left when that has closed its own.

Steps are mappings with one key: `send`, `see`, `answer` and `get` as above, where `send` and `answer` may be `{pour: bytes,
stalls: most}`: at most so many go out before the other side takes them. `close`, `reset`, `half`, `pause` and `resume` the
`client` or the `backend`. `ends`: it has been closed, `cut_off`: in the midst of a message. `quiet`: nothing has come. `say` are
bytes; `bytes_at` and `until_at` what comes next, or ends what has come. `connections`: so many were made. `client: another` comes anew.
"""

from __future__ import annotations

import json
import re
import socket
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from livegateway import Background, merged, token
from proxy.conformance import strict
from proxy.conformance.stage import End, Stage

HERE = Path(__file__).parent
MARK = "xyzzy"
"""Input that no problem document may repeat."""

_HOP_BY_HOP = ("Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "Proxy-Authenticate", "HTTP2-Settings")
_BYTES = {"CR": "\r", "LF": "\n", "NUL": "\0"}
_FRAMED = re.compile(r"^(content-length|transfer-encoding)\s*:", re.IGNORECASE | re.MULTILINE)

Case = Mapping[str, Any]


def load() -> Iterator[tuple[str, Case]]:
    """Give each case with its name, file by file."""
    for file in sorted((HERE / "cases").glob("*.yaml")):
        for case in yaml.safe_load(file.read_text()):
            variants = case.pop("each", [{}])
            for number, variant in enumerate(variants, 1):
                whole = merged(case, variant)
                name = case["name"] if len(variants) == 1 else f"{case['name']} ({variant.get('name', number)})"
                assert whole["rfc"], name
                yield f"{file.stem}: {name}", whole


def gateways(here: str, nowhere: str) -> Mapping[str, Mapping[str, Any]]:
    """Return the sections of each gateway's configuration, given the addresses of a backend and of none."""
    text = (HERE / "gateways.yaml").read_text().replace("${HERE}", here).replace("${NOWHERE}", nowhere)
    return {name: sections for name, sections in yaml.safe_load(text).items() if not name.startswith("_")}


class Play:
    """One run of a case. `cut`: in pieces of so many bytes, on both sides; None: whole."""

    def __init__(self, gateway: Background, listener: socket.socket, *, cut: int | None = None) -> None:
        self._gateway = gateway
        self._listener = listener
        self._cut = cut
        self._words = _BYTES | {"token": token("ann", scope="orders:read"), "unique": uuid.uuid4().hex}
        self._log: list[str] = []
        self._heads: list[bool] = []
        self._at: End | None = None
        self._closing = False

    def run(self, case: Case) -> None:
        """Play it. AssertionError, with all that went over the wires, where it goes another way."""
        try:
            with Stage(self._gateway, self._listener) as stage:
                self._stage = stage
                for step in case.get("steps") or self._plain(case):
                    ((kind, given),) = step.items()
                    getattr(self, f"_{kind}")(given)
                if case.get("after") != "none":
                    closed = case.get("closed", False)
                    self._after(closed=self._closing if closed == "as told" else closed)
                self._nothing_left()
        except AssertionError as error:
            raise AssertionError(f"{error}\n\nRFC {case['rfc']}\n" + "\n".join(self._log) + self._unread()) from None

    def _plain(self, case: Case) -> Iterator[Case]:
        if "twice" in case:
            # A cache asks anew each time.
            for _ in range(2):
                yield {"send": {"line": "GET /${unique} HTTP/1.1", "fields": "Host: cached.test"}}
                yield {"see": {}}
                yield {"answer": case["answer"]}
                yield {"get": {"body": "one"}}
            return
        yield {"send": case.get("request", {})}
        seen = case.get("seen", {})
        if seen is not None:
            yield {"see": seen}
            yield {"answer": case.get("answer", {"body": "ok"})}
        if case.get("got", 200) is not None:
            yield {"get": case.get("got", 200)}
        if seen is None:
            yield {"quiet": "backend"}

    # --- texts ---

    def _filled(self, text: str) -> str:
        return re.sub(r"\$\{([^{}*]+)(?:\*(\d+))?\}", lambda m: self._words.get(m[1], m[1]) * int(m[2] or 1), text)

    def _bytes(self, text: str) -> bytes:
        return self._filled(str(text).replace("\r\n", "\n").replace("\n", "\r\n")).encode("latin-1")

    def _message(self, given: Any, line: str, fields: str) -> bytes:
        if isinstance(given, str):
            given = {"head": given}
        if "raw" in given:
            return self._bytes(given["raw"])
        body = self._bytes(given.get("body", ""))
        if "head" in given:
            return self._bytes(given["head"].rstrip("\n") + "\n\n") + body
        own = given.get("fields", "").strip("\n")
        hosted = re.match("host:", own, re.IGNORECASE)
        lines = [given.get("line", line), "" if hosted else fields, own]
        if ("body" in given or not fields) and not _FRAMED.search(own):
            lines.append(f"Content-Length: {len(body)}")
        return self._bytes("\n".join(filter(None, lines)) + "\n\n") + body

    # --- steps ---

    def _send(self, given: Any) -> None:
        if isinstance(given, Mapping) and "pieces" in given:
            for piece in given["pieces"]:
                self._out(self._stage.client, self._bytes(piece))
                self._stage.settle()
            self._heads.append(str(given["pieces"][0]).startswith("HEAD"))
            return
        if isinstance(given, Mapping) and "pour" in given:
            self._pour(self._stage.client, given)
            return
        data = self._message(given, "GET /x HTTP/1.1", "Host: shop.test")
        self._heads.append(data.startswith(b"HEAD"))
        self._out(self._stage.client, data)

    def _answer(self, given: Any) -> None:
        assert self._at is not None, "nobody has asked the backend"
        if isinstance(given, Mapping) and "pieces" in given:
            for piece in given["pieces"]:
                self._out(self._at, self._bytes(piece))
                self._stage.settle()
            return
        if isinstance(given, Mapping) and "pour" in given:
            self._pour(self._at, given)
            return
        self._out(self._at, self._message(given, "HTTP/1.1 200 OK", ""))

    def _out(self, end: End, data: bytes) -> None:
        self._note("client" if end in self._stage.clients else "backend", ">", data)
        self._stage.send(end, data, cut=self._cut)

    def _pour(self, end: End, given: Mapping[str, int]) -> None:
        before = end.sent
        self._stage.send(end, b"x" * given["pour"], wait=False)
        if "stalls" in given:
            self._stage.flow(0.3)
            assert end.unsent, f"all {given['pour']} bytes went out with nobody to take them"
            assert end.sent - before <= given["stalls"], f"{end.sent - before} bytes went out with nobody to take them"

    def _see(self, given: Any) -> None:
        end = self._asked()
        found = strict.request(end.received)
        assert found is not None
        message, end.received = found
        self._at = end
        self._note("backend", "<", message.whole)
        self._check_seen(message)
        self._check(message, {"line": given} if isinstance(given, str) else given)

    def _asked(self) -> End:
        def complete() -> list[End]:
            return [end for end in self._stage.backends if not end.closed and strict.request(end.received)]

        self._stage.until(complete, "the backend gets a request")
        return complete()[0]

    def _get(self, given: Any) -> None:
        expected: Mapping[str, Any] = {"status": given} if isinstance(given, int) else given
        client, bodiless = self._stage.client, self._heads[0] if self._heads else False
        interim: list[int] = []
        if expected.get("broken"):
            self._stage.until(lambda: client.ended, "the connection is cut")
            assert strict.answer(client.received, bodiless=bodiless) is None, "the answer is whole"
            assert client.received or expected["broken"] == "empty", "nothing came"
            client.received = b""
            return
        while True:
            self._stage.until(
                lambda: client.ended or strict.answer(client.received, bodiless=bodiless), "the client gets an answer"
            )
            found = strict.answer(client.received, bodiless=bodiless, eof=client.ended and not client.cut)
            assert found is not None, "the answer is not whole"
            message, client.received = found
            self._note("client", "<", message.whole)
            if message.status >= 200 or message.status == 101:
                break
            interim.append(message.status)
            if message.status == expected.get("status"):
                break
        self._closing = message.all("Connection") == ["close"]
        if message.status >= 200 and self._heads:
            self._heads.pop(0)
        if message.status not in interim:
            assert interim == expected.get("interim", []), f"1xx answers: {interim}"
        self._check_got(message)
        self._check(message, expected)

    def _close(self, who: str) -> None:
        self._end(who).close()

    def _reset(self, who: str) -> None:
        self._end(who).close(reset=True)

    def _half(self, who: str) -> None:
        self._end(who).socket.shutdown(socket.SHUT_WR)

    def _pause(self, who: str) -> None:
        self._end(who).paused = True

    def _resume(self, who: str) -> None:
        self._end(who).paused = False

    def _ends(self, who: str) -> None:
        end = self._end(who)
        self._stage.until(lambda: end.ended, f"the {who}'s connection is closed")
        assert not end.received, f"more at the {who}: {end.received[:500]!r}"

    def _cut_off(self, who: str) -> None:
        """Expect the end of a connection in the midst of a message."""
        end = self._end(who)
        self._stage.until(lambda: end.ended, f"the {who}'s connection is closed")
        end.received = b""

    def _quiet(self, who: str) -> None:
        self._stage.settle()
        self._stage.flow(0)
        if who == "backend":
            assert not any(end.received for end in self._stage.backends), "the backend got something"
        else:
            assert not self._stage.client.received, "the client got something"

    def _bytes_at(self, given: Mapping[str, str]) -> None:
        """Expect bytes that are no message."""
        ((who, text),) = given.items()
        end, data = self._end(who), self._bytes(text)
        self._stage.until(lambda: end.ended or len(end.received) >= len(data), f"bytes at the {who}")
        assert end.received[: len(data)] == data, f"at the {who}: {end.received[:500]!r}"
        end.received = end.received[len(data) :]

    def _until_at(self, given: Mapping[str, str]) -> None:
        """Expect that what came so far ends so, and forget it."""
        ((who, text),) = given.items()
        end, data = self._end(who), self._bytes(text)
        self._stage.until(lambda: end.ended or end.received.endswith(data), f"{text!r} at the {who}")
        self._note(who, "<", end.received)
        assert end.received.endswith(data), f"at the {who}: {end.received[-500:]!r}"
        end.received = b""

    _rest_at = _until_at

    def _get_any(self, statuses: list[int]) -> None:
        """Expect one of several statuses: a case may run more than once."""
        client = self._stage.client
        self._stage.until(lambda: strict.answer(client.received), "the client gets an answer")
        found = strict.answer(client.received)
        assert found is not None
        message, client.received = found
        assert message.status in statuses, f"status {message.status}"
        self._heads.clear()

    def _connections(self, count: int) -> None:
        """Expect that the gateway has made so many."""
        assert len(self._stage.backends) == count, f"{len(self._stage.backends)} connections"

    def _say(self, given: Mapping[str, str]) -> None:
        """Send bytes that are no message."""
        ((who, text),) = given.items()
        self._out(self._end(who), self._bytes(text))

    def _client(self, _: str) -> None:
        self._stage.again()
        self._heads.clear()

    def _wait(self, seconds: float) -> None:
        """Let time pass, for what only happens with it."""
        self._stage.flow(seconds)

    def _end(self, who: str) -> End:
        if who == "client":
            return self._stage.client
        if self._at is None:
            self._stage.until(lambda: self._stage.backends, "the gateway connects")
            self._at = self._stage.backends[-1]
        return self._at

    # --- what is always so ---

    def _after(self, *, closed: bool) -> None:
        client = self._stage.client
        if closed:
            self._stage.until(lambda: client.ended, "the connection is closed")
            assert not client.received, f"more than the answer: {client.received[:500]!r}"
            return
        self._heads.clear()
        self._cut = None
        self._send({"line": "GET /after HTTP/1.1"})
        self._see("GET /after HTTP/1.1")
        self._answer({"fields": "X-After: 1", "body": "its own"})
        self._get({"status": 200, "body": "its own", "fields": {"X-After": "1"}})

    def _nothing_left(self) -> None:
        """Check that the gateway counts nothing as under way, and that nothing came that nobody asked for."""
        backends = self._gateway.live.gateway.proxied._backends.values()
        stage = self._stage
        stage.until(
            lambda: all(each.upstream.working == each.upstream.held == 0 for each in backends), "nothing is counted any more"
        )
        stage.settle()
        stage.flow(0)
        for end in stage.backends:
            assert end.closed or not end.received, f"a request too many: {end.received[:500]!r}"
        for end in stage.backends:
            end.close()
        stage.until(lambda: all(len(each.pool) == 0 for each in backends), "the gateway has no connections left")

    def _check_seen(self, message: strict.Message) -> None:
        for name in _HOP_BY_HOP:
            assert not message.all(name), f"{name} went on"
        options = {option.strip().lower() for value in message.all("Connection") for option in value.split(",")}
        assert options <= {"upgrade", "te"}, options
        assert message.all("Via")[-1].endswith("1.1 longpoll-gateway") or "1.0 longpoll-gateway" in message.all("Via")[-1]
        assert len(message.all("X-Forwarded-For")) == len(message.all("Forwarded")) == 1
        assert len(message.all("traceparent")) == len(message.all("X-Request-Id")) == 1

    def _check_got(self, message: strict.Message) -> None:
        for name in _HOP_BY_HOP:
            assert not message.all(name), f"{name} came back"
        assert message.status < 200 or message.status == 101 or len(message.all("X-Request-Id")) == 1, "X-Request-Id"

    # --- expectations ---

    def _check(self, message: strict.Message, expected: Mapping[str, Any]) -> None:
        for name, value in expected.items():
            getattr(self, f"_has_{name}")(message, value)

    def _has_line(self, message: strict.Message, expected: str) -> None:
        assert message.line == self._filled(expected), f"line: {message.line}"

    def _has_status(self, message: strict.Message, expected: int) -> None:
        assert message.status == expected, f"status {message.status}"

    def _has_reason(self, message: strict.Message, expected: str) -> None:
        assert message.line.split(" ", 2)[2] == expected, f"reason: {message.line}"

    def _has_code(self, message: strict.Message, expected: str) -> None:
        assert message.all("Content-Type") == ["application/problem+json"], "Content-Type"
        assert message.all("Cache-Control") == ["no-store"], "Cache-Control"
        assert MARK.encode() not in message.whole, "echo"
        problem = json.loads(message.body)
        assert (problem["code"], problem["status"]) == (expected, message.status), f"code {problem['code']}"

    def _has_fields(self, message: strict.Message, expected: Mapping[str, Any]) -> None:
        self._compare(message.fields, expected)

    def _has_trailers(self, message: strict.Message, expected: Mapping[str, Any]) -> None:
        self._compare(message.trailers, expected)

    def _has_body(self, message: strict.Message, expected: str) -> None:
        wanted = self._bytes(expected)
        assert message.body == wanted, f"body: {message.body[:200]!r}, {len(message.body)} bytes"

    def _has_chunked(self, message: strict.Message, expected: bool) -> None:
        assert message.chunked is expected, "chunked"

    def _has_lacks(self, message: strict.Message, expected: Any) -> None:
        for text in [expected] if isinstance(expected, str) else expected:
            assert self._bytes(text).lower() not in message.whole.lower(), f"{text} is there"

    def _has_interim(self, message: strict.Message, expected: Any) -> None:
        """Look at nothing: `_get` has."""

    def _has_size(self, message: strict.Message, expected: int) -> None:
        assert len(message.body) == expected, f"{len(message.body)} bytes"

    def _compare(self, fields: list[tuple[str, str]], expected: Mapping[str, Any]) -> None:
        for name, wanted in expected.items():
            found = strict.values(fields, name)
            if wanted is None:
                assert not found, f"{name} is there: {found}"
            elif isinstance(wanted, list):
                assert found == [self._filled(str(each)) for each in wanted], f"{name}: {found}"
            elif str(wanted).startswith("/") and str(wanted).endswith("/") and len(str(wanted)) > 2:
                assert len(found) == 1, f"{name}: {found}"
                assert re.search(self._filled(wanted[1:-1]), found[0]), f"{name}: {found}"
            else:
                assert found == [self._filled(str(wanted))], f"{name}: {found}"

    # --- the transcript ---

    def _note(self, who: str, way: str, data: bytes) -> None:
        self._log.append(f"{who:7} {way} {data[:3000]!r}{' …' if len(data) > 3000 else ''}")

    def _unread(self) -> str:
        ends = [("client", end) for end in self._stage.clients] + [("backend", end) for end in self._stage.backends]
        return "".join(
            f"\nunread at the {who}: {end.received[:1500]!r}{' (ended)' if end.ended else ''}"
            for who, end in ends
            if end.received or end.ended
        )
