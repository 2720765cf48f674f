"""The document: YAML as plain values, with variables put in and every mistake placed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.document import MAX_DEPTH, MAX_VALUES, Document, Problem, parse, shown_path

HINT = " (between { and } quote what holds ${NAME})"


def sentences(document: Document) -> list[str]:
    return [problem.show("f") for problem in document.problems]


def value_of(text: str, **env: str) -> object:
    document = parse(text, env)
    assert document.problems == []
    return document.values


class TestValues:
    def test_scalars_are_what_yaml_says(self):
        text = "{a: 1, b: 1.5, c: true, d: ~, e: x, f: '1', g: [1, {h: 0x10}], i: , 1: x, true: y}"
        expected = {"a": 1, "b": 1.5, "c": True, "d": None, "e": "x", "f": "1", "g": [1, {"h": 16}], "i": None}
        assert value_of(text) == expected | {"1": "x", "true": "y"}

    def test_dates_and_merge_keys_are_plain_text(self):
        """They surprise more often than they serve; a version like 2024-01-01 stays what was written."""
        assert value_of("{a: 2024-01-01, '<<': 1, b: =}") == {"a": "2024-01-01", "<<": 1, "b": "="}
        assert value_of("a: {<<: x}") == {"a": {"<<": "x"}}

    def test_aliases_stand_for_what_they_name(self):
        assert value_of("{a: &x [1], b: *x}") == {"a": [1], "b": [1]}

    def test_nothing_is_null(self):
        assert value_of("") is None

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a: !!python/object/apply:os.system ['x']", "f:1: a: expected a plain mapping or list, got a YAML tag"),
            ("a: !!set {x}", "f:1: a: expected a plain mapping or list, got a YAML tag"),
            ("a: !thing x", "f:1: a: expected text, a number or true/false, got what its YAML tag does not fit"),
            ("a: !!int x", "f:1: a: expected text, a number or true/false, got what its YAML tag does not fit"),
            ("a: !!int ''", "f:1: a: expected text, a number or true/false, got what its YAML tag does not fit"),
            ("a: !!bool x", "f:1: a: expected text, a number or true/false, got what its YAML tag does not fit"),
            ("a: " + "9" * 5000, "f:1: a: expected text, a number or true/false, got what its YAML tag does not fit"),
            ("[x]: 1", "f:1: expected keys of plain text, got a list or mapping as key"),
            ("a:\n  b: 1\n  b: 2", "f:3: a.b: expected each key once, got it again (first in line 2)"),
            ("a: {'1': 1, 1: 2}", "f:1: a.1: expected each key once, got it again (first in line 1)"),
        ],
    )
    def test_what_is_not_plain_is_a_problem(self, text, expected):
        assert sentences(parse(text, {})) == [expected]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a: [1", "f:1: expected YAML, got a mistake: expected ',' or ']', but got '<stream end>'"),
            ("a: 1\nb: *x", "f:2: expected YAML, got a mistake: found undefined alias 'x'"),
            ("a: 1\n--- \nb: 2", "f:2: expected YAML, got a mistake: but found another document"),
            ("a: 'x", "f:1: expected YAML, got a mistake: found unexpected end of stream"),
            ("\t", "f:1: expected YAML, got a mistake: found character '\\t' that cannot start any token"),
            (b"\xff\xfe\xff", "f:1: expected UTF-8 text, got bytes that are none"),
            ("a: \x00", "f:1: expected UTF-8 text, got bytes that are none"),
            (
                "x: 1\na: {b: ${B}}",
                f"f:2: expected YAML, got a mistake: expected ',' or '}}', but got '{{'{HINT}",
            ),
            (
                b"a: {b: ${B}}",
                f"f:1: expected YAML, got a mistake: expected ',' or '}}', but got '{{'{HINT}",
            ),
            ("[" * 100_000, f"f:1: expected at most {MAX_DEPTH} levels of nesting, got far more"),
        ],
    )
    def test_no_yaml_is_one_problem(self, text, expected):
        [problem] = sentences(parse(text, {}))
        assert problem == expected

    @pytest.mark.parametrize(
        "text",
        [
            "&a [*a]",
            "[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2),
            "[" + "1," * MAX_VALUES + "]",
            "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)),
        ],
        ids=["contains-itself", "deep", "large", "laughs"],
    )
    def test_growth_is_bounded(self, text):
        [problem] = parse(text, {}).problems
        assert f"{MAX_VALUES} values or {MAX_DEPTH} levels" in problem.sentence


class TestSubstitution:
    @pytest.mark.parametrize(
        ("text", "filled"),
        [
            ("a: ${X}", "1"),
            ("a: '${X}'", "1"),
            ("a: x${X}y${X}", "x1y1"),
            ("a: ${NONE:-d}", "d"),
            ("a: ${NONE:-}", None),
            ("a: '${NONE:-}'", ""),
            ("a: ${EMPTY}", None),
            ("a: ${EMPTY:-d}", "d"),
            ("a: ${X:-d}", "1"),
            ("a: $${X}", "${X}"),
            ("a: $X", "$X"),
            ("a: ${YAML}", "{b: 1}"),
            ("a: ${NONE:-http://x:1/}", "http://x:1/"),
            ("a: ${NESTED}", "${X}"),
        ],
    )
    def test_variables_are_text(self, text, filled):
        """Whatever they hold: no number, no switch, no YAML, no variable again."""
        assert value_of(text, X="1", EMPTY="", YAML="{b: 1}", NESTED="${X}") == {"a": filled}

    def test_keys_are_left_alone(self):
        assert value_of("'${X}': 1", X="x") == {"${X}": 1}

    def test_what_is_missing_is_told_with_its_place(self):
        document = parse("a:\n  - ${X}\n  - '${Y} ${X}'", {})
        assert sentences(document) == [
            "f:2: a[0]: expected the environment variable X to be set, got nothing",
            "f:3: a[1]: expected the environment variable Y to be set, got nothing",
            "f:3: a[1]: expected the environment variable X to be set, got nothing",
        ]

    @pytest.mark.parametrize("text", ["a: '${}'", "a: '${1}'", "a: '${X'", "a: '${X-d}'", "a: '${ X }'"])
    def test_a_slip_is_not_taken_for_text(self, text):
        [problem] = sentences(parse(text, {"X": "1"}))
        assert problem == "f:1: a: expected ${NAME} or ${NAME:-default} (a literal ${ is $${), got neither"


class TestPlaces:
    def test_lines_are_those_of_keys_and_items(self):
        document = parse("a:\n  b:\n    - x\n    - y: 1\n", {})
        assert document.lines == {
            (): 1,
            ("a",): 1,
            ("a", "b"): 2,
            ("a", "b", 0): 3,
            ("a", "b", 1): 4,
            ("a", "b", 1, "y"): 4,
        }
        assert document.line(("a", "b", 1, "z", 7)) == 4
        assert Document().line(("a",)) == 1

    def test_paths_are_shown_as_they_are_spoken(self):
        assert shown_path(("channels", "chat/{room}", "headers", 0)) == "channels.chat/{room}.headers[0]"

    def test_a_problem_with_no_path_has_only_a_line(self):
        assert Problem(3, (), "expected x, got y").show("a.yaml") == "a.yaml:3: expected x, got y"


@given(st.text() | st.binary())
def test_any_input_is_a_value_or_a_problem(text):
    document = parse(text, {})
    assert document.values is None or not isinstance(document.values, bytes)


@given(st.text("ab:{}[]-&*!'\"\n ${}#|>?,.~0", max_size=40))
def test_any_almost_yaml_is_a_value_or_a_problem(text):
    parse(text, {"a": "1"})
