"""Which route takes a request (sans-I/O).

Theory of operation. The routes stand in one order, and the first that fits takes the request. The order asks, one after the
other: is the host named, or covered by a wildcard (the longest first), or any; is the path a literal one, a template (the
one with more literal segments first) or a prefix (the longest first); how many conditions on method, header and query are
there (more first). Two routes that this order cannot tell apart, and that some request fits both, are a conflict, and all
conflicts are found at once.

To find the first, no route is tried that cannot be it. A dict leads from the host to the tables that hold for it: its own,
those of wildcards, that of all hosts. A table is a trie of segments. The walk through it follows literals and parameters
side by side, because a template with a parameter early may have the more literals, and picks up the prefixes on its way. So
what a search costs depends on the path's segments and on how many routes share that very path, and not on how many routes
there are.

A path that a backend may read as one of a deeper route takes none: it would be a way around that route's rules (`paths`).

What only fails for its method is remembered: if nothing fits, the answer is WrongMethod. HEAD fits where GET does. OPTIONS
fits where it is listed or where all methods do; whoever answers preflights (Fetch standard, section 3.3.6) asks for the
route of the method that is to follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Generic, NamedTuple, TypeVar, final
from urllib.parse import parse_qsl

from gateway.channels import Segment
from gateway.proxy.paths import otherwise, rest, split

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

ANY: Final = "*"  # as the value of a header field or a query parameter: it is there

_MAX_HOST: Final = 255  # of DNS (RFC 1035, section 2.3.4)
_NO_PARAMETERS: Final[Mapping[str, str]] = MappingProxyType({})


@final
@dataclass(frozen=True, slots=True)
class Match:
    """Which requests a route takes.

    `hosts` are names, `*.` with a name for everything below it, or addresses; None: all. `below`: the segments, all
    literals, are a prefix. `methods` None: all. Of header fields and query parameters (form-decoded) that come more than
    once, the first counts.
    """

    segments: tuple[Segment, ...]
    below: bool = False
    hosts: tuple[str, ...] | None = None
    methods: frozenset[str] | None = None
    headers: tuple[tuple[str, str], ...] = ()
    query: tuple[tuple[str, str], ...] = ()

    @property
    def allowed(self) -> frozenset[str] | None:
        """The methods, with HEAD where GET is."""
        return self.methods | {"HEAD"} if self.methods is not None and "GET" in self.methods else self.methods

    @property
    def literals(self) -> int:
        """How many segments are literal."""
        return sum(not segment.parameter for segment in self.segments)

    @property
    def conditions(self) -> int:
        """How many conditions there are besides host and path."""
        return (self.methods is not None) + len(self.headers) + len(self.query)

    def conditions_meet(self, other: Match) -> bool:
        """Tell whether the conditions of both can hold for one request."""
        mine, theirs = self.allowed, other.allowed
        return (
            (mine is None or theirs is None or not mine.isdisjoint(theirs))
            and _agree([(name.lower(), value) for name, value in self.headers], other.headers)
            and _agree(self.query, other.query, exact=True)
        )


def _agree(mine: Iterable[tuple[str, str]], theirs: Iterable[tuple[str, str]], *, exact: bool = False) -> bool:
    wanted = dict(mine)
    for name, value in theirs:
        other = wanted.get(name if exact else name.lower(), ANY)
        if value != other and ANY not in (value, other):
            return False
    return True


class Entry(NamedTuple, Generic[R_co]):
    """One route: its name, what it takes, and what the caller ties to it."""

    name: str
    match: Match
    route: R_co


class Found(NamedTuple, Generic[R_co]):
    """The route of a request; `parameters` decoded once, `rest` is the raw path behind the prefix, empty or from a slash on."""

    route: R_co
    parameters: Mapping[str, str]
    rest: str


class WrongMethod(NamedTuple):
    """There are routes, but for other methods, sorted."""

    allowed: tuple[str, ...]


class Conflict(NamedTuple):
    """Two routes that one request fits equally well."""

    first: str
    second: str
    why: str


class RouteConflict(ValueError):
    """Routes cannot stand side by side; `conflicts` lists all pairs of them."""

    def __init__(self, conflicts: Sequence[Conflict]) -> None:
        super().__init__("; ".join(f"{first} and {second}: {why}" for first, second, why in conflicts))
        self.conflicts = tuple(conflicts)

    @property
    def names(self) -> tuple[tuple[str, str], ...]:
        """The names of each two."""
        return tuple((conflict.first, conflict.second) for conflict in self.conflicts)


@final
class Routes(Generic[R]):
    """All routes; raises RouteConflict. The order in which they are given makes no difference."""

    def __init__(self, entries: Iterable[Entry[R]]) -> None:
        self._names: list[str] = []
        self._routes: list[R] = []
        tables: dict[str | None, _Node[R]] = {}
        conflicts: dict[tuple[str, str], Conflict] = {}
        for entry in entries:
            self._names.append(entry.name)
            self._routes.append(entry.route)
            hosts = entry.match.hosts
            for host in (None,) if hosts is None else dict.fromkeys(map(host_name, hosts)):
                table = tables.setdefault(host, _Node())
                for conflict in _conflicts(table, entry, host):
                    conflicts.setdefault(conflict[:2], conflict)
                _insert(table, _Leaf(entry))
        if conflicts:
            raise RouteConflict(list(conflicts.values()))
        anywhere = tables.pop(None, None)
        self._anywhere: tuple[_Node[R], ...] = () if anywhere is None else (anywhere,)
        self._named: dict[str, tuple[_Node[R], ...]] = {}
        self._below: dict[str, tuple[_Node[R], ...]] = {}
        # Wildcards first and of them the shortest: whatever comes later goes on with what holds around it.
        for host in sorted((host for host in tables if host is not None), key=lambda host: (host[:1] != "*", len(host))):
            if host.startswith("*."):
                self._below[host[1:]] = (tables[host], *self._around(host[1:]))
            else:
                self._named[host] = (tables[host], *self._around(host))

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Routes({', '.join(self._names)})"

    def routes(self) -> list[R]:
        """Return what is tied to the entries, in the order given."""
        return list(self._routes)

    def find(self, host: str, method: str, path: str, query: str, headers: Mapping[str, str]) -> Found[R] | WrongMethod | None:
        """Find the route of a request, from its head as it came: `host` with its port, `path` and `query` raw.

        `headers` finds names in any case. None where no route fits.
        """
        segments = split(path)
        if segments is None:
            return None
        leaf, allowed = self._first(host, method, segments, query, headers)
        if leaf is None:
            return WrongMethod(tuple(sorted(allowed))) if allowed else None
        if ("%" in path or ";" in path) and (others := split(otherwise(path))) not in (None, segments):
            other, _ = self._first(host, method, others or (), query, headers)
            if other is not None and other.place > leaf.place:
                return None
        return leaf.found(path, segments)

    def _first(
        self, host: str, method: str, segments: Sequence[str], query: str, headers: Mapping[str, str]
    ) -> tuple[_Leaf[R] | None, frozenset[str]]:
        """Return the first route that fits, and of those before it the methods that do not."""
        allowed: frozenset[str] = frozenset()
        pairs: Mapping[str, str] | None = None
        for table in self._tables(host) if self._named or self._below else self._anywhere:
            for leaf in _candidates(table, segments):
                if not leaf.plain:
                    if pairs is None:
                        pairs = _first_values(query)
                    if not leaf.holds(headers, pairs):
                        continue
                if leaf.methods is None or method in leaf.methods:
                    return leaf, allowed
                allowed |= leaf.methods
        return None, allowed

    def _tables(self, host: str) -> tuple[_Node[R], ...]:
        name = host_name(host)
        return self._named.get(name) or self._around(name)

    def _around(self, name: str) -> tuple[_Node[R], ...]:
        """Return the tables of the longest wildcard that covers a name, and what holds after them."""
        if self._below and len(name) <= _MAX_HOST:
            at = name.find(".", 1)
            while at > 0:
                if tables := self._below.get(name[at:]):
                    return tables
                at = name.find(".", at + 1)
        return self._anywhere


def host_name(host: str) -> str:
    """Return a Host field's name as names are compared: in lower case, without the port and without a dot at its end."""
    name = host.lower()
    if name[:1] == "[":
        return name[: name.find("]") + 1]
    if ":" in name:
        name = name[: name.index(":")]
    return name[:-1] if name[-1:] == "." else name


def _first_values(query: str) -> Mapping[str, str]:
    pairs: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        pairs.setdefault(name, value)
    return pairs


# --- the trie ---


class _Leaf(Generic[R]):
    """A route at its place in a table, with all that a search needs laid out."""

    __slots__ = ("below", "headers", "match", "methods", "name", "parameters", "place", "plain", "query", "rank", "route")

    def __init__(self, entry: Entry[R]) -> None:
        self.name, self.match, self.route = entry
        match = entry.match
        self.rank = (-match.literals, -match.conditions)
        self.place = (len(match.segments), match.literals)
        self.methods = match.allowed
        self.headers = match.headers
        self.query = match.query
        self.plain = not match.headers and not match.query
        self.below = match.below
        self.parameters = tuple((each.text, index) for index, each in enumerate(match.segments) if each.parameter)

    def holds(self, headers: Mapping[str, str], pairs: Mapping[str, str]) -> bool:
        """Tell whether the conditions on header and query hold."""
        for given, wanted in ((headers, self.headers), (pairs, self.query)):
            for name, value in wanted:
                if (found := given.get(name)) is None or value not in (found, ANY):
                    return False
        return True

    def found(self, path: str, segments: Sequence[str]) -> Found[R]:
        """Return what a search that ends here gives."""
        if self.below:
            return Found(self.route, _NO_PARAMETERS, rest(path, len(self.match.segments)))
        if self.parameters:
            return Found(self.route, {name: segments[index] for name, index in self.parameters}, "")
        return Found(self.route, _NO_PARAMETERS, "")


class _Node(Generic[R]):
    """A place in a table: `here` are routes whose path ends at it, `below` those whose prefix does, in order."""

    __slots__ = ("below", "here", "literals", "parameter")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[R]] = {}
        self.parameter: _Node[R] | None = None
        self.here: tuple[_Leaf[R], ...] = ()
        self.below: tuple[_Leaf[R], ...] = ()

    def child(self, segment: Segment) -> _Node[R]:
        """Return the node for a pattern's segment, which is made if need be."""
        if not segment.parameter:
            return self.literals.setdefault(segment.text, _Node())
        if self.parameter is None:
            self.parameter = _Node()
        return self.parameter

    def meeting(self, segment: Segment) -> Iterator[_Node[R]]:
        """Give the nodes for which some text fits both them and a pattern's segment."""
        if segment.parameter:
            yield from (node for text, node in self.literals.items() if text)
        elif segment.text in self.literals:
            yield self.literals[segment.text]
        if self.parameter is not None and segment.text:
            yield self.parameter


def _insert(table: _Node[R], leaf: _Leaf[R]) -> None:
    node = table
    for segment in leaf.match.segments:
        node = node.child(segment)
    if leaf.below:
        node.below = tuple(sorted((*node.below, leaf), key=_rank))
    else:
        node.here = tuple(sorted((*node.here, leaf), key=_rank))


def _rank(leaf: _Leaf[R]) -> tuple[int, int]:
    return leaf.rank


def _candidates(table: _Node[R], segments: Sequence[str]) -> Sequence[_Leaf[R]]:
    """Return the routes whose path fits, in order."""
    node, below = table, table.below
    for depth, segment in enumerate(segments):
        following = node.literals.get(segment)
        # An empty segment, which only stands at the end, is nothing that a parameter could be.
        if node.parameter is not None and segment:
            if following is not None:
                return _branching([node], segments[depth:], below)
            following = node.parameter
        if following is None:
            return below
        node = following
        if node.below:
            below = node.below + below
    return node.here + below


def _branching(nodes: list[_Node[R]], segments: Sequence[str], below: tuple[_Leaf[R], ...]) -> Sequence[_Leaf[R]]:
    """Go on with `_candidates` from where more than one way leads on."""
    for segment in segments:
        following: list[_Node[R]] = []
        for node in nodes:
            if (literal := node.literals.get(segment)) is not None:
                following.append(literal)
                below = literal.below + below
            if node.parameter is not None and segment:
                following.append(node.parameter)
        nodes = following
    return *sorted([leaf for node in nodes for leaf in node.here], key=_rank), *below


# --- conflicts ---


def _conflicts(table: _Node[R], entry: Entry[R], host: str | None) -> Iterator[Conflict]:
    """Give the conflicts of a route with those that are already in a table."""
    match = entry.match
    nodes = [table]
    for segment in match.segments:
        nodes = [child for node in nodes for child in node.meeting(segment)]
    rank = (-match.literals, -match.conditions)
    for node in nodes:
        for leaf in node.below if match.below else node.here:
            if leaf.rank == rank and leaf.match.conditions_meet(match):
                yield Conflict(leaf.name, entry.name, _why(leaf.match, match, host))


def _why(one: Match, other: Match, host: str | None) -> str:
    texts = [
        f"{{{mine.text}}}" if mine.parameter and theirs.parameter else theirs.text if mine.parameter else mine.text
        for mine, theirs in zip(one.segments, other.segments, strict=True)
    ]
    below = ", and what is below it," if one.below else ""
    methods = (one.allowed or other.allowed or frozenset()) & (other.allowed or one.allowed or frozenset())
    request = f"{min(methods) if methods else 'any method of'} /{'/'.join(texts)}"
    where = "on any host" if host is None else f"on {host}"
    return f"both fit {request}{below} {where}, and neither is the more specific one"
