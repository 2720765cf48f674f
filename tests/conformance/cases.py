"""The HTTP contract as cases: what is sent, and what has to come back. A case is steps, a step a request with what is expected.

A file in `cases/` is a list of cases. A case has `name` and either one step's keys or `steps`. A step's request is `method`
(GET), `path` (/v1/subscribe), `query` (mapping, or list of pairs), `target` (in place of both, as it stands), `token` (a name of
`TOKENS`; null for none), `headers` (mapping, or list of pairs), `body`, `port` (public or admin) or, in place of all, `raw`: the bytes.
What is expected: `status`, `code`, `expect` (header fields: text, /pattern/, or null where the field must not be there), `json` (a part of the
document: mappings may have more members, lists are whole), `text`, `closed`. `save` keeps things for later
steps, which write `${name}`: `header:Name`, or `json:member`; `${name*9}` is nine times that, and of a name that nothing was saved
under, nine times the name. `each` makes one case of each of its mappings, which lie over it.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml
from livegateway import merged, token
from rawhttp import RawReply, comparable, exchange, receive

CASES = Path(__file__).parent / "cases"
# Whatever has this in it is input that no problem document may repeat.
MARK = "xyzzy"

TOKENS = {
    "ann": token("ann", rooms=["lobby", "room4"], scope="news:read news:write"),
    "bob": token("bob"),
    "other": token("ann", other=True, rooms=["lobby"]),
    "textual": token("ann", rooms="lobby"),
    "nested": token("ann", rooms=[["lobby"]]),
    "numeric": token("ann", rooms=[4]),
    "glued": token("ann", rooms="lobby room4"),
    "expired": token("ann", lifetime=-10.0),
    "unborn": token("ann", nbf=4_000_000_000),
    "misdirected": token("ann", aud="somebody-else"),
    "forged": token("ann")[:-4] + "AAAA",
    "garbage": MARK,
}

Step = Mapping[str, Any]


def load() -> Iterator[tuple[str, list[Step]]]:
    """Give each case with its name, file by file."""
    for file in sorted(CASES.glob("*.yaml")):
        for case in yaml.safe_load(file.read_text()):
            variants = case.pop("each", [{}])
            for variant in variants:
                whole = merged(case, variant)
                name = whole.pop("name")
                if "name" in variant:
                    name = f"{case['name']}: {name}"
                elif variant:
                    given = variant.get("query") or variant.get("headers") or variant
                    name += f" ({' '.join(f'{key}={value}' for key, value in _pairs(given))[:40]})"
                yield f"{file.stem}: {name}", whole.get("steps", [whole])


class Conversation:
    """One case against one gateway. Raises AssertionError, with the answer in it, where the contract is broken.

    `around` is a request that is sent before and after each step, on the same connection; without it each step closes its own.
    `answers` is all that came back then, ready to be compared; None where the connection had been closed.
    """

    def __init__(self, ports: Mapping[str, int], *, around: bytes | None = None) -> None:
        self.answers: list[tuple[bytes, bytes] | None] = []
        self._ports = ports
        self._around = around
        self._saved = {"channels": "&channel=news", "fields": "X-A: b\n", "digits": "1\n", "ann": TOKENS["ann"]}

    def run(self, steps: list[Step]) -> None:
        """Take the steps."""
        for step in steps:
            reply = self._exchange(step)
            try:
                self._check(step, reply)
            except AssertionError as error:
                raise AssertionError(f"{error}\nsent: {self._request(step)[:2000]!r}\ngot: {reply}") from None
            self._save(step, reply)

    def _exchange(self, step: Step) -> RawReply:
        port, head = self._ports[step.get("port", "public")], step.get("method", "GET") == "HEAD"
        if self._around is None:
            return exchange(port, self._request(step), head=head)
        around = self._around if step.get("port", "public") == "public" else b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            self._noted(connection, around)
            reply = self._noted(connection, self._request(step), head=head)
            assert reply is not None, "closed without an answer"
            self._noted(connection, around)
        return reply

    def _noted(self, connection: socket.socket, request: bytes, *, head: bool = False) -> RawReply | None:
        try:
            connection.sendall(request)
            reply = receive(connection, head=head)
        except ConnectionError:
            self.answers.append(None)
            return None
        self.answers.append(comparable(reply.head, reply.body))
        return reply

    def _filled(self, text: str) -> str:
        return re.sub(r"\$\{([^{}*]+)(?:\*(\d+))?\}", lambda m: self._saved.get(m[1], m[1]) * int(m[2] or 1), str(text))

    def _request(self, step: Step) -> bytes:
        if "raw" in step:
            return self._filled(step["raw"]).replace("\r\n", "\n").replace("\n", "\r\n").encode("latin-1")
        body = self._filled(step["body"]).encode() if "body" in step else None
        closing = [("Connection", "close")] if self._around is None else []
        headers = [("Host", "gateway.test"), *closing, *_pairs(step.get("headers", {}))]
        name = step.get("token", "ann")
        if name is not None:
            headers.append(("Authorization", f"Bearer {TOKENS[name]}"))
        if body is not None:
            headers.append(("Content-Length", str(len(body))))
        head = [f"{step.get('method', 'GET')} {self._target(step)} HTTP/1.1"]
        head += [f"{name}: {self._filled(value)}" for name, value in headers if value is not None]
        return "\r\n".join([*head, "", ""]).encode("latin-1") + (body or b"")

    def _target(self, step: Step) -> str:
        if "target" in step:
            return self._filled(step["target"])
        query = [(name, self._filled(value)) for name, value in _pairs(step.get("query", {})) if value is not None]
        return str(step.get("path", "/v1/subscribe")) + (f"?{urlencode(query)}" if query else "")

    def _check(self, step: Step, reply: RawReply) -> None:
        assert reply.status == step["status"], f"status {reply.status}"
        if "code" in step or reply.status >= 400:
            self._check_problem(step, reply)
        elif reply.header("Next-Cursor") is not None:
            _check_answer(reply)
        for name, expected in step.get("expect", {}).items():
            _check_header(name, self._filled(expected) if expected is not None else None, reply.header(name))
        if "json" in step:
            _check_part(step["json"], reply.json, "$")
        if "text" in step:
            assert re.search(self._filled(step["text"]), reply.body.decode()), "text"
        if "closed" in step:
            assert reply.closed is step["closed"], "closed"

    def _check_problem(self, step: Step, reply: RawReply) -> None:
        """Check what is true of every problem document."""
        if step.get("method") == "HEAD":
            assert reply.header("Content-Type") == "application/problem+json", "type"
            return
        if "code" not in step:
            return
        problem = reply.json
        assert reply.header("Content-Type") == "application/problem+json", "type"
        assert reply.header("Cache-Control") == "no-store", "Cache-Control"
        assert problem["code"] == step["code"], f"code {problem['code']}"
        assert problem["status"] == reply.status, "status in the document"
        assert problem["type"] == f"urn:gateway:problem:{step['code']}", "type in the document"
        assert problem["title"], "title"
        assert problem["detail"], "detail"
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", problem["request_id"]), "request_id"
        assert MARK not in reply.body.decode(), "echo"
        assert MARK not in str(reply.headers), "echo in the head"
        if reply.status == 401:
            challenge = 'Bearer realm="gateway"'
            if step["code"] != "token_missing":
                challenge += f', error="invalid_token", error_description="{problem["detail"]}"'
            assert reply.header("WWW-Authenticate") == challenge, "WWW-Authenticate"
        if reply.status in (429, 503):
            assert int(reply.header("Retry-After") or "0") >= 1, "Retry-After"
        if reply.status == 429:
            assert reply.header("RateLimit-Policy"), "RateLimit-Policy"
            assert reply.header("RateLimit"), "RateLimit"

    def _save(self, step: Step, reply: RawReply) -> None:
        for name, source in step.get("save", {}).items():
            kind, _, where = source.partition(":")
            self._saved[name] = str(reply.header(where) if kind == "header" else reply.json[where])


def _check_answer(reply: RawReply) -> None:
    """Check what is true of every 200 and 204 of a subscription."""
    assert reply.header("Cache-Control") == "private, no-store", "Cache-Control"
    assert reply.header("Date"), "Date"
    cursor = reply.header("Next-Cursor")
    link = (reply.header("Link") or "").partition(", <")[0]  # those of a channel's life come behind it
    assert link.endswith(f'&cursor={cursor}>; rel="next"'), "Link"
    assert "from=" not in link, "from in Link"
    if reply.status == 204:
        assert reply.header("Content-Length") is None, "Content-Length"
        assert reply.header("Content-Type") is None, "Content-Type"
    elif reply.body:
        assert reply.header("Content-Type") == "application/json", "Content-Type"
        assert reply.json["cursor"] == cursor, "cursor"


def _check_header(name: str, expected: str | None, found: str | None) -> None:
    if expected is None:
        assert found is None, f"{name} is there"
    elif expected.startswith("/") and expected.endswith("/"):
        assert found is not None, f"{name} is missing"
        assert re.search(expected[1:-1], found), name
    else:
        assert found == expected, f"{name} is {found!r}"


def _check_part(expected: Any, found: Any, place: str) -> None:
    if isinstance(expected, Mapping):
        assert isinstance(found, Mapping), place
        for name, value in expected.items():
            assert name in found, f"{place}.{name} is missing"
            _check_part(value, found[name], f"{place}.{name}")
    elif isinstance(expected, list):
        assert isinstance(found, list), place
        assert len(found) == len(expected), f"{place} has {len(found)}"
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            _check_part(one, other, f"{place}[{index}]")
    else:
        assert found == expected, f"{place} is {found!r}"


def _pairs(given: Any) -> list[tuple[str, Any]]:
    return list(given.items()) if isinstance(given, Mapping) else [(name, value) for name, value in given]
