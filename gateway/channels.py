"""What clients may name: channels, matched, authorized and turned into selections (sans-I/O).

A channel's pattern is a path of segments, each a literal or one `{parameter}`. A name arrives here decoded exactly once, by
the parser of the query string, and is never decoded again: an encoded slash has become a slash by then and adds a segment
that no pattern has, and what was encoded twice still holds a `%`, which no segment may. So there is one spelling of
every channel, and nothing that a proxy in front and this module could read differently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from gateway import errors
from gateway.auth.policy import AUTHENTICATED, NOBODY, Rule, check
from gateway.auth.possible import possible, shape
from gateway.auth.principal import Principal
from gateway.auth.templates import Template
from gateway.fanout.subscription import Selection
from gateway.lifecycle import ENDLESS, Lifecycle

Format = Literal["json", "text", "binary"]

MAX_CHANNELS: Final = 32  # of one subscription
MAX_SEGMENTS: Final = 8

_SEGMENT: Final = re.compile(r"[A-Za-z0-9._~-]{1,128}", re.ASCII)
_PARAMETER: Final = re.compile(r"\{([a-z][a-z0-9_]{0,31})\}")
_DOTS: Final = frozenset({".", ".."})  # what they mean in a path depends on who reads it (RFC 3986, section 5.2.4)


class PatternInvalid(ValueError):
    """A pattern of a channel or a route, or two of them together, cannot be used; the text says what was expected."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One part of a pattern between slashes: a literal, or a parameter that takes any one segment."""

    text: str
    parameter: bool

    def meets(self, other: Segment) -> bool:
        """Tell whether some text fits both."""
        return self.parameter or other.parameter or self.text == other.text


def parse_pattern(pattern: str) -> tuple[Segment, ...]:
    """Split a pattern such as `chat/{room}`; raises PatternInvalid."""
    return parse_segments(pattern.split("/"), _literal, most=MAX_SEGMENTS)


def parse_segments(texts: Sequence[str], literal: Callable[[str], str], *, most: int) -> tuple[Segment, ...]:
    """Tell literals and parameters apart, at most `most` of them and each parameter once; raises PatternInvalid.

    `literal` gives what a text that is no parameter stands for; it may raise PatternInvalid.
    """
    segments = tuple(_parse_segment(text, literal) for text in texts)
    if len(segments) > most:
        raise PatternInvalid(f"at most {most} segments")
    parameters = [segment.text for segment in segments if segment.parameter]
    if len(set(parameters)) < len(parameters):
        raise PatternInvalid("each parameter once")
    return segments


def _parse_segment(text: str, literal: Callable[[str], str]) -> Segment:
    if parameter := _PARAMETER.fullmatch(text):
        return Segment(parameter[1], parameter=True)
    return Segment(literal(text), parameter=False)


def _literal(text: str) -> str:
    if not _is_segment(text):
        raise PatternInvalid("segments of A-Z a-z 0-9 . _ ~ - or one {parameter} each, split by /")
    return text


def _is_segment(text: str) -> bool:
    return _SEGMENT.fullmatch(text) is not None and text not in _DOTS


@dataclass(frozen=True, slots=True)
class Channel:
    """One configured channel.

    `key` None: all records of the topic. `allow` is the rule for reading, `publish` that for publishing. `origins` None: the
    process-wide CORS origins; a tuple, even an empty one, takes their place. `priority` is sorted ascending.
    """

    pattern: str
    segments: tuple[Segment, ...]
    topic: str
    allow: Rule = AUTHENTICATED
    publish: Rule = NOBODY
    key: Template | None = None
    format: Format = "json"
    headers: tuple[str, ...] = ()
    priority: int = 100
    partitioner: Literal["murmur2"] | None = None
    on_loss: Literal["report", "fail"] = "report"
    on_reset: Literal["fail", "earliest", "latest"] = "fail"
    origins: tuple[str, ...] | None = None
    description: str = ""
    lifecycle: Lifecycle = ENDLESS

    @property
    def literal(self) -> bool:
        """Whether the pattern has no parameter."""
        return not any(segment.parameter for segment in self.segments)

    def match(self, texts: Sequence[str]) -> dict[str, str] | None:
        """Give the parameters, or None where the segments, as many as the pattern has, do not fit."""
        params: dict[str, str] = {}
        for segment, text in zip(self.segments, texts, strict=True):
            if segment.parameter:
                params[segment.text] = text
            elif segment.text != text:
                return None
        return params

    def overlaps(self, other: Channel) -> bool:
        """Tell whether some name fits both patterns."""
        return len(self.segments) == len(other.segments) and all(
            mine.meets(theirs) for mine, theirs in zip(self.segments, other.segments, strict=True)
        )

    def key_for(self, principal: Principal, params: Mapping[str, str]) -> bytes | None:
        """Give the key that the channel fixes; raises Forbidden where the principal lacks a claim of it."""
        return None if self.key is None else self.key.expand(principal, params).encode()


@dataclass(frozen=True, slots=True)
class Target:
    """Where a publish goes: `key` None leaves the key to the publisher."""

    name: str
    channel: Channel
    key: bytes | None


@dataclass(frozen=True, slots=True)
class Visible:
    """One line of the list of channels, as one principal sees it."""

    channel: Channel
    read: bool
    publish: bool


class Channels:
    """All configured channels. Literal ones win over those with parameters; no two of the latter may overlap."""

    def __init__(self, channels: Iterable[Channel]) -> None:
        self._all = tuple(channels)
        self._literal: dict[str, Channel] = {}
        # By number of segments: few patterns have the same, and none of them overlap, so the first that fits is it.
        self._patterns: dict[int, list[Channel]] = {}
        for channel in self._all:
            self._add(channel)

    def _add(self, channel: Channel) -> None:
        if channel.literal:
            if channel.pattern in self._literal:
                raise PatternInvalid(f"each channel once, not {channel.pattern} again")
            self._literal[channel.pattern] = channel
            return
        peers = self._patterns.setdefault(len(channel.segments), [])
        for peer in peers:
            if channel.overlaps(peer):
                raise PatternInvalid(f"patterns of which no name fits two, as it does {peer.pattern}")
        peers.append(channel)

    def __iter__(self) -> Iterator[Channel]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __repr__(self) -> str:
        return f"Channels({', '.join(channel.pattern for channel in self._all)})"

    def match(self, name: str) -> tuple[Channel, dict[str, str]] | None:
        """Find the channel of a name that was percent-decoded once, and its parameters."""
        if (literal := self._literal.get(name)) is not None:
            return literal, {}
        texts = name.split("/", MAX_SEGMENTS)
        for channel in self._patterns.get(len(texts), ()):
            if (params := channel.match(texts)) is not None:
                return (channel, params) if all(map(_is_segment, params.values())) else None
        return None

    def select(self, names: Sequence[str], principal: Principal) -> tuple[Selection, ...]:
        """Turn the names of a request into selections, sorted by name and each once: the order of a request is free.

        Raises ParameterInvalid for none or more than 32 names (counted as sent), and Forbidden when any of them is unknown
        or not allowed, without telling which.
        """
        if not 1 <= len(names) <= MAX_CHANNELS:
            raise errors.ParameterInvalid("channel", f"1 to {MAX_CHANNELS} of them")
        return tuple(self._select(name, principal) for name in sorted(set(names)))

    def _select(self, name: str, principal: Principal) -> Selection:
        if (found := self.match(name)) is None:
            raise errors.Forbidden
        channel, params = found
        check(channel.allow, principal, params)
        return Selection(
            channel=name,
            pattern=channel.pattern,
            topic=channel.topic,
            key=channel.key_for(principal, params),
            format=channel.format,
            headers=channel.headers,
            priority=channel.priority,
            partitioner=channel.partitioner,
            on_loss=channel.on_loss,
            on_reset=channel.on_reset,
            lifecycle=channel.lifecycle,
        )

    def publish_target(self, name: str, principal: Principal) -> Target:
        """Find where a publish goes; raises Forbidden for what is unknown, read-only or not allowed."""
        if (found := self.match(name)) is None:
            raise errors.Forbidden
        channel, params = found
        check(channel.publish, principal, params)
        return Target(name, channel, channel.key_for(principal, params))

    def visible(self, principal: Principal) -> tuple[Visible, ...]:
        """List the channels of which the principal may read or publish at least one name, in the order given."""
        shown = []
        for channel in self._all:
            usable = channel.key is None or shape(channel.key, principal, _SEGMENT.pattern) is not None
            read = usable and possible(channel.allow, principal, _SEGMENT.pattern)
            publish = usable and possible(channel.publish, principal, _SEGMENT.pattern)
            if read or publish:
                shown.append(Visible(channel, read=read, publish=publish))
        return tuple(shown)
