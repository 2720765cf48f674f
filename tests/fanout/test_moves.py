"""A topic's last moves: what each brought, for whom, and when they are forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.fanout import moves as moves_module
from gateway.fanout.cursor import TopicPosition
from gateway.fanout.moves import Moves
from gateway.records import Record

HERE = TopicPosition(0, {})


def added(moves: Moves, *keys: bytes | None, partition: int = 0, offset: int = 0, keyed: bool = True) -> int:
    """Add a move with a record for each key; return its number."""
    records = [Record(offset + n, 0, key, b"") for n, key in enumerate(keys)]
    return moves.add(HERE, partition, records, keyed=keyed).number


def later(moves: Moves, number: int, key: bytes | None) -> list[int]:
    """Return the offsets of what came for a key after a move."""
    return [record.offset for move in moves.since(number, key) for record in move.of(key)]


def test_moves_are_numbered() -> None:
    """From 1, also those without records."""
    moves = Moves()
    assert (moves.number, len(moves), repr(moves)) == (0, 0, "<Moves 1 to 0>")
    assert [added(moves, b"x"), added(moves), added(moves, None)] == [1, 2, 3]
    assert (moves.number, len(moves), repr(moves)) == (3, 3, "<Moves 1 to 3>")
    assert repr(moves.add(HERE, 7, [], keyed=True)) == "<Move 4: 0 records of partition 7>"


def test_a_move_tells_what_it_brought_for_a_key() -> None:
    """In order; records without a key are for those who read all."""
    move = Moves().add(HERE, 0, [Record(n, 0, key, b"") for n, key in enumerate((b"x", None, b"y", b"x"))], keyed=True)
    assert [record.offset for record in move.of(b"x")] == [0, 3]
    assert [record.offset for record in move.of(None)] == [0, 1, 2, 3]
    assert list(move.of(b"z")) == []


def test_a_key_is_quiet_where_no_later_move_brought_anything_for_it() -> None:
    """Whoever reads all hears everything."""
    moves = Moves()
    for keys in ((b"x",), (b"y",), (), (None,), ()):
        added(moves, *keys)
    assert [moves.quiet(b"x", number) for number in range(6)] == [False, True, True, True, True, True]
    assert [moves.quiet(b"y", number) for number in range(6)] == [False, False, True, True, True, True]
    assert [moves.quiet(None, number) for number in range(6)] == [False, False, False, False, True, True]
    assert moves.quiet(b"z", 0)


def test_no_key_is_known_to_be_quiet_where_keys_were_of_no_interest() -> None:
    """The moves themselves tell then."""
    moves = Moves()
    added(moves, b"x", keyed=False)
    assert not moves.quiet(b"y", 0)
    assert later(moves, 0, b"y") == []
    assert later(moves, 0, b"x") == [0]
    assert moves.quiet(b"x", 1)
    assert not moves.quiet(None, 0)


def test_what_came_later_is_told_by_key() -> None:
    """Where the next move is the newest of a key, it alone is looked at."""
    moves = Moves()
    for offset, key in enumerate((b"x", b"y", b"x", b"x", b"y")):
        added(moves, key, offset=offset)
    assert [later(moves, number, b"x") for number in range(6)] == [[0, 2, 3], [2, 3], [2, 3], [3], [], []]
    assert [later(moves, number, None) for number in (0, 3, 5)] == [[0, 1, 2, 3, 4], [3, 4], []]
    assert len(list(moves.since(3, b"x"))) == 1


def test_after_a_break_in_the_chain_nothing_is_known_of_before() -> None:
    """A reader of then has to look for himself."""
    moves = Moves()
    added(moves, b"x")
    moves.clear()
    assert [moves.knows(number) for number in range(3)] == [False, False, True]
    assert added(moves, b"x") == 3
    assert moves.knows(2)
    assert later(moves, 2, b"x") == [0]


def test_moves_are_bounded(monkeypatch) -> None:
    """The oldest go first."""
    monkeypatch.setattr(moves_module, "_MOST_MOVES", 3)
    moves = Moves()
    for _ in range(5):
        added(moves, b"x")
    assert len(moves) == 3
    assert [moves.knows(number) for number in range(6)] == [False, False, True, True, True, True]


def test_what_is_known_of_keys_is_bounded(monkeypatch) -> None:
    """A million keys of long ago are not remembered; forgetting one says that it is quiet, which it is since then."""
    monkeypatch.setattr(moves_module, "_MOST_MOVES", 10)
    monkeypatch.setattr(moves_module, "_PRUNE_AT", 20)
    moves = Moves()
    for n in range(1_000):
        added(moves, b"%d" % n)
        assert len(moves._newest) <= 62
        assert [moves.quiet(b"%d" % k, n) for k in range(n - 3, n + 1)] == [True, True, True, False]


def test_moves_whose_records_the_tail_gave_up_are_forgotten() -> None:
    """Or memory would hold what no budget counts; those of other partitions before them go along."""
    moves = Moves()
    added(moves, b"x", partition=1)
    for offset in range(4):
        added(moves, b"x", offset=offset)
        added(moves, partition=0)
    added(moves, b"x", partition=2)
    moves.drop_evicted(0, 0)
    assert len(moves) == 10
    moves.drop_evicted(3, 99)
    assert len(moves) == 10
    moves.drop_evicted(0, 2)
    assert [move.records[0].offset for move in moves.since(moves.number - len(moves), None) if move.records] == [2, 3, 0]
    moves.drop_evicted(0, 99)
    assert [move.partition for move in moves.since(moves.number - len(moves), None)] == [0, 2]
    moves.drop_evicted(2, 99)
    assert len(moves) == 0
    assert moves.knows(moves.number)


@given(
    st.lists(
        st.tuples(st.sampled_from((0, 1)), st.lists(st.sampled_from((None, b"x", b"y")), max_size=3), st.booleans()),
        max_size=12,
    ),
    st.integers(0, 12),
    st.sampled_from((None, b"x", b"y")),
)
def test_moves_tell_what_a_list_of_all_records_would(steps, number: int, key: bytes | None) -> None:
    """Whatever came, with keys of interest or not."""
    moves, ends, everything = Moves(), [0, 0], []
    for partition, keys, keyed in steps:
        move = moves.add(HERE, partition, [Record(ends[partition] + n, 0, k, b"") for n, k in enumerate(keys)], keyed=keyed)
        ends[partition] += len(keys)
        everything += [(move.number, partition, record.offset) for record in move.records if key in (None, record.key)]
    number = min(number, moves.number)
    expected = [(partition, offset) for at, partition, offset in everything if at > number]
    assert moves.knows(number)
    assert [(move.partition, record.offset) for move in moves.since(number, key) for record in move.of(key)] == expected
    assert not (moves.quiet(key, number) and expected)
