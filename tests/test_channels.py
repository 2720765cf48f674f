"""Channels: which names open what, and for whom."""

from __future__ import annotations

import re
from types import MappingProxyType
from urllib.parse import parse_qsl, quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.auth.policy import AUTHENTICATED, parse_rule
from gateway.auth.principal import Principal
from gateway.auth.templates import parse_template
from gateway.channels import Channel, Channels, PatternInvalid, Target, parse_pattern
from gateway.errors import Forbidden, ParameterInvalid

NAME = re.compile(r"[A-Za-z0-9._~-]{1,128}")


def channel(pattern: str, *, key: str | None = None, allow: object = None, publish: object = None, **more) -> Channel:
    return Channel(
        pattern=pattern,
        segments=parse_pattern(pattern),
        topic=more.pop("topic", "topic"),
        allow=parse_rule(allow, absent=AUTHENTICATED),
        publish=parse_rule(publish, absent=Channel.__dataclass_fields__["publish"].default),
        key=None if key is None else parse_template(key),
        **more,
    )


def principal(*scopes: str, issuer: str = "main", **claims: object) -> Principal:
    claims = {"sub": "alice", **claims}
    return Principal(issuer, "alice", MappingProxyType(claims), frozenset(scopes), None, None)


ROOMS = channel("chat/{room}", topic="chat", key="{room}", allow={"claim": "rooms", "contains": "{room}"})
NEWS = channel("news", topic="news", publish={"scope": "news:write"})
MINE = channel("notifications", topic="notifications", key="{claims.sub}")


class TestPatterns:
    def test_segments_are_literals_or_parameters(self):
        assert [(s.text, s.parameter) for s in parse_pattern("a/{b_1}/c.d~-")] == [
            ("a", False),
            ("b_1", True),
            ("c.d~-", False),
        ]

    @pytest.mark.parametrize(
        "pattern",
        [
            "", "/", "a/", "/a", "a//b", "a/./b", "a/..", "{}", "{Room}", "a{b}", "{a}{b}", "{a}/{a}", "a b", "ä", "a%2Fb", "{claims.sub}",
            "a/b/c/d/e/f/g/h/i", "x" * 129, "{" + "p" * 33 + "}", "a\n", "{a}\n",
        ],
    )  # fmt: skip
    def test_what_cannot_be_a_pattern(self, pattern):
        with pytest.raises(PatternInvalid):
            parse_pattern(pattern)

    def test_a_literal_is_there_once(self):
        with pytest.raises(PatternInvalid, match="news"):
            Channels([NEWS, channel("news", topic="other")])

    @pytest.mark.parametrize("other", ["chat/{name}", "{a}/{b}", "{a}/x"])
    def test_patterns_with_parameters_must_not_overlap(self, other):
        with pytest.raises(PatternInvalid, match="no name fits two"):
            Channels([ROOMS, channel(other)])

    def test_patterns_that_only_look_alike_live_side_by_side(self):
        channels = Channels([ROOMS, channel("mail/{room}"), channel("chat/{room}/{part}")])
        assert len(channels) == len(list(channels)) == 3
        assert repr(channels) == "Channels(chat/{room}, mail/{room}, chat/{room}/{part})"
        assert channels.match("mail/1")[0].pattern == "mail/{room}"


class TestMatch:
    def test_parameters_come_with_the_channel(self):
        assert Channels([NEWS, ROOMS]).match("chat/42") == (ROOMS, {"room": "42"})

    def test_literals_win_over_parameters(self):
        lobby = channel("chat/lobby")
        assert Channels([ROOMS, lobby]).match("chat/lobby") == (lobby, {})

    @pytest.mark.parametrize("name", ["news", "chat/a.b", "chat/~", "chat/...", "chat/" + "x" * 128])
    def test_names_that_are_known(self, name):
        assert Channels([NEWS, ROOMS]).match(name) is not None

    @pytest.mark.parametrize(
        "name",
        [
            "", "/", "chat", "chat/", "/chat/1", "chat//1", "chat/1/", "chat/1/2", "chat/.", "chat/..", "chat/../news", "News", "news/", "news\n", "chat/1\n",
            "chat%2F1", "chat/%31", "chat/1%2F2", "chat/%2e%2e", "chat/a b", "chat/a+b", "chat/ä", "chat/٣", "chat/\x00", "chat/{room}", "{room}", "chat\\1",
            "chat/" + "x" * 129, "chat/1?x=1", "chat/1#x", "/".join("x" * 5000),
        ],
    )  # fmt: skip
    def test_names_that_open_nothing(self, name):
        assert Channels([NEWS, ROOMS]).match(name) is None

    @pytest.mark.parametrize(
        ("sent", "known"),
        [
            ("chat/42", True),
            ("chat%2F42", True),  # the query's own spelling of the same name: decoded once, it is a slash like any other
            ("chat%2f%34%32", True),
            ("chat%252F42", False),  # decoded twice somewhere, it would be another name
            ("chat/%252e%252e", False),
            ("chat/4%2F2", False),
            ("chat/%2e%2e%2fnews", False),
            ("chat/42%00", False),
            ("chat/4+2", False),
        ],
    )
    def test_the_query_is_decoded_exactly_once(self, sent, known):
        """What a query string's parser gives is taken as it is."""
        [(_, name)] = parse_qsl(f"channel={sent}")
        assert (Channels([NEWS, ROOMS]).match(name) is not None) is known

    @given(st.text() | st.from_regex(r"\Achat/.{0,3}\Z"))
    @example("chat/a/b")
    def test_a_match_is_a_segment_and_can_be_rebuilt(self, name):
        found = Channels([NEWS, ROOMS]).match(name)
        if found is not None and found[0] is ROOMS:
            assert name == f"chat/{found[1]['room']}"
            assert NAME.fullmatch(found[1]["room"])
            assert found[1]["room"] not in (".", "..")
            assert quote(name) == name

    @given(st.lists(st.sampled_from(["a", "b", "{x}", "{y}"]), min_size=1, max_size=3), st.data())
    def test_no_order_of_the_configuration_matters(self, segments, data):
        """Since no two patterns overlap, the first that fits is the only one."""
        patterns = ["a/{x}", "{x}/b/{y}", "{x}", "b/{x}"]
        order = data.draw(st.permutations(patterns))
        name = "/".join("z" if s.startswith("{") else s for s in segments)
        one, other = (Channels(map(channel, listed)).match(name) for listed in (patterns, order))
        assert (one and (one[0].pattern, one[1])) == (other and (other[0].pattern, other[1]))


class TestSelect:
    def test_a_selection_has_what_the_channel_says(self):
        binary = channel(
            "raw/{id}",
            topic="t",
            key="k:{id}",
            format="binary",
            headers=("trace",),
            priority=1,
            partitioner="murmur2",
            on_loss="fail",
            on_reset="latest",
        )
        [selection] = Channels([binary]).select(["raw/7"], principal())
        assert selection.channel == "raw/7"
        assert selection.pattern == "raw/{id}"
        assert (selection.topic, selection.key, selection.format, selection.headers) == ("t", b"k:7", "binary", ("trace",))
        assert (selection.priority, selection.partitioner) == (1, "murmur2")
        assert (selection.on_loss, selection.on_reset) == ("fail", "latest")

    def test_without_a_key_all_records_are_selected(self):
        [selection] = Channels([NEWS]).select(["news"], principal())
        assert selection.key is None

    def test_keys_are_utf8(self):
        [selection] = Channels([MINE]).select(["notifications"], principal(sub="Zoë"))
        assert selection.key == "Zoë".encode()

    @given(st.lists(st.sampled_from(["news", "notifications", "chat/1", "chat/2"]), min_size=1, max_size=32))
    def test_order_and_repetition_are_free(self, names):
        channels, caller = Channels([NEWS, MINE, ROOMS]), principal(rooms=["1", "2"])
        assert channels.select(names, caller) == channels.select(sorted(set(names), reverse=True), caller)
        assert [s.channel for s in channels.select(names, caller)] == sorted(set(names))

    @pytest.mark.parametrize("count", [0, 33])
    def test_a_subscription_has_1_to_32_channels(self, count):
        with pytest.raises(ParameterInvalid, match="1 to 32"):
            Channels([NEWS]).select(["news"] * count, principal())

    @pytest.mark.parametrize("names", [["nothing"], ["news", "nothing"], ["chat/2"], ["news", "chat/2"], ["chat/.."]])
    def test_one_channel_that_is_unknown_or_not_allowed_forbids_all(self, names):
        """Both look the same, so that nobody finds out what there is."""
        with pytest.raises(Forbidden) as caught:
            Channels([NEWS, ROOMS]).select(names, principal(rooms=["1"]))
        assert str(caught.value) == str(Forbidden())

    @pytest.mark.parametrize(
        "rooms", [["room42"], "room42", ["room", "4"], ["room4 "], [["room4"]], {"room4": 1}, None, "", 4, ["ROOM4"]]
    )
    def test_room4_is_not_room42(self, rooms):
        with pytest.raises(Forbidden):
            Channels([ROOMS]).select(["chat/room4"], principal(rooms=rooms))

    @pytest.mark.parametrize("sub", [None, "", 7, ["alice"], True])
    def test_a_key_needs_its_claim(self, sub):
        with pytest.raises(Forbidden):
            Channels([MINE]).select(["notifications"], principal(sub=sub))

    def test_another_issuers_subject_opens_nothing(self):
        guarded = channel("notifications", key="{claims.sub}", allow={"issuers": ["main"]})
        assert Channels([guarded]).select(["notifications"], principal())
        with pytest.raises(Forbidden):
            Channels([guarded]).select(["notifications"], principal(issuer="other"))


class TestPublish:
    def test_the_key_is_fixed_by_the_channel_or_left_open(self):
        write = channel("w/{id}", key="{id}", publish={"authenticated": True})
        channels = Channels([write, NEWS])
        assert channels.publish_target("w/1", principal()) == Target("w/1", write, b"1")
        assert channels.publish_target("news", principal("news:write")) == Target("news", NEWS, None)

    @pytest.mark.parametrize("name", ["nothing", "notifications", "news", "w/.."])
    def test_unknown_read_only_and_not_allowed_look_the_same(self, name):
        channels = Channels([NEWS, MINE, channel("w/{id}", publish={"scope": "w"})])
        with pytest.raises(Forbidden):
            channels.publish_target(name, principal("news:read"))

    def test_publishing_needs_no_right_to_read(self):
        inbox = channel("inbox", allow={"scope": "inbox:read"}, publish={"scope": "inbox:write"})
        assert Channels([inbox]).publish_target("inbox", principal("inbox:write")).channel is inbox


class TestVisible:
    @staticmethod
    def seen(caller: Principal, *channels: Channel) -> dict[str, str]:
        return {shown.channel.pattern: "r" * shown.read + "w" * shown.publish for shown in Channels(channels).visible(caller)}

    def test_only_what_the_principal_may_use_is_listed(self):
        secret = channel("secret", allow={"scope": "secret"})
        assert self.seen(principal(), NEWS, MINE, ROOMS, secret) == {"news": "r", "notifications": "r"}
        assert self.seen(principal("news:write", "secret", rooms=["1"]), NEWS, MINE, ROOMS, secret) == {
            "news": "rw",
            "notifications": "r",
            "chat/{room}": "r",
            "secret": "r",
        }

    def test_a_key_that_cannot_be_made_hides_the_channel(self):
        assert self.seen(principal(sub=""), MINE) == {}

    @pytest.mark.parametrize(
        ("rule", "shown"),
        [
            ({"scope": "room:{room}"}, True),
            ({"scope": "hall:{room}"}, False),
            ({"claim": "rooms", "contains": "{claims.sub}:{room}"}, True),
            ({"claim": "rooms", "contains": "{claims.none}:{room}"}, False),
            ({"claim": "scope", "contains": "room:{room}"}, True),
            ({"claim": "sub", "contains": "{room}"}, True),
            ({"claim": "number", "contains": "{room}"}, False),
            ({"claim": "sub", "equals": "{room}"}, True),
            ({"claim": "number", "equals": "{room}"}, False),
            ({"claim": "none", "equals": "{room}"}, False),
            ({"all": [{"scope": "room:{room}"}, {"claim": "sub", "equals": "alice"}]}, True),
            ({"all": [{"scope": "room:{room}"}, {"claim": "sub", "equals": "bob"}]}, False),
            ({"any": [{"scope": "room:{room}"}, {"claim": "sub", "equals": "bob"}]}, True),
            ({"any": [{"scope": "hall:{room}"}, {"claim": "sub", "equals": "bob"}]}, False),
            ({"issuers": ["main"]}, True),
            ({"issuers": ["other"]}, False),
        ],
    )
    def test_a_pattern_is_listed_iff_some_name_may_pass(self, rule, shown):
        caller = principal("room:1", rooms=["alice:1"], scope="room:1", number=5)
        assert bool(self.seen(caller, channel("chat/{room}", key="{room}", allow=rule))) is shown

    @given(st.text("ab1", min_size=1, max_size=2), st.lists(st.text("ab1", max_size=2), max_size=3))
    def test_what_can_be_selected_is_listed(self, room, rooms):
        caller = principal(rooms=rooms)
        try:
            Channels([ROOMS]).select([f"chat/{room}"], caller)
        except Forbidden:
            return
        assert self.seen(caller, ROOMS) == {"chat/{room}": "r"}
