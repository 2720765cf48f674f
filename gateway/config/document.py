"""YAML with environment variables put in, and the line of every path (sans-I/O).

Theory of operation. PyYAML composes a tree of nodes; this module turns it into plain values itself, because the tree knows
what the values no longer know: the line, whether a scalar was quoted, and that a key came twice. Three rules:

- A scalar that held `${…}` is text, whatever the variable holds: a password of digits stays a password, and a variable
  can add neither keys nor tags. The models read numbers and switches from text.
- Plain and empty after substitution means null, as an empty value does in YAML.
- Aliases are followed with a bound on the values that they add up to, so a file of one kilobyte cannot become a
  gigabyte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import yaml

Path = tuple[str | int, ...]

MAX_VALUES: Final = 100_000
MAX_DEPTH: Final = 32

_TAG: Final = "tag:yaml.org,2002:"
_VARIABLE: Final = re.compile(
    r"\$\$\{"  # an escaped opening: `$${` stands for `${`
    r"|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}"
    r"|\$\{"  # an opening that is neither
)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong at one place: `line` counts from 1; the sentence reads "expected …, got …"."""

    line: int
    path: Path
    sentence: str

    def show(self, source: str) -> str:
        """Give the line of a report, in the form that editors and compilers share."""
        place = f"{source}:{self.line}: "
        return place + (f"{shown_path(self.path)}: {self.sentence}" if self.path else self.sentence)


@dataclass(slots=True)
class Document:
    """A file's values; `lines` and `written` are by path, `written` the scalars before substitution."""

    values: object = None
    lines: dict[Path, int] = field(default_factory=dict)
    written: dict[Path, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: Path) -> int:
        """Give the line of a path, or of the nearest path above it that is in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def shown_path(path: Path) -> str:
    """Show a path as `channels.chat/{room}.headers[0]`."""
    shown = ""
    for step in path:
        shown += f"[{step}]" if isinstance(step, int) else f".{step}"
    return shown.removeprefix(".")


def parse(text: str | bytes, env: Mapping[str, str]) -> Document:
    """Read YAML; every problem of syntax, keys, tags and variables is in the document's `problems`."""
    document = Document()
    try:
        # A subclass of SafeLoader, and only its composer is used: no tag makes an object.
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is not None:
                document.values = _Reader(document, loader, env).value(root, ())
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        hint = " (between { and } quote what holds ${NAME})" if _holds_variable(text, line) else ""
        sentence = f"expected YAML, got a mistake: {error.problem or error.context}{hint}"
        document.problems.append(Problem(line, (), sentence))
    except yaml.YAMLError:  # only the reader's own: bytes that are no text
        document.problems.append(Problem(1, (), "expected UTF-8 text, got bytes that are none"))
    except RecursionError:
        document.problems.append(Problem(1, (), f"expected at most {MAX_DEPTH} levels of nesting, got far more"))
    return document


def _holds_variable(text: str | bytes, line: int) -> bool:
    lines = text.splitlines()[line - 1 : line]
    return any("${" in found if isinstance(found, str) else b"${" in found for found in lines)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without dates, merge keys and `=`: none has a use here, each surprises someone."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # the base class has it so
        first: [pair for pair in pairs if pair[0].removeprefix(_TAG) in {"null", "bool", "int", "float"}]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_CONSTRUCTORS: Final[dict[str, Callable[[yaml.SafeLoader, yaml.ScalarNode], object]]] = {
    _TAG + "str": yaml.SafeLoader.construct_yaml_str,
    _TAG + "null": yaml.SafeLoader.construct_yaml_null,
    _TAG + "bool": yaml.SafeLoader.construct_yaml_bool,
    _TAG + "int": yaml.SafeLoader.construct_yaml_int,
    _TAG + "float": yaml.SafeLoader.construct_yaml_float,
}


class _TooMuch(yaml.MarkedYAMLError):
    """The file is deeper, or with its aliases larger, than any configuration."""


class _Reader:
    """Turns nodes into values and notes lines and problems in the document."""

    def __init__(self, document: Document, loader: _Loader, env: Mapping[str, str]) -> None:
        self._document = document
        self._loader = loader
        self._env = env
        self._count = 0

    def value(self, node: yaml.Node, path: Path) -> object:
        self._document.lines.setdefault(path, node.start_mark.line + 1)
        self._count += 1
        if self._count > MAX_VALUES or len(path) > MAX_DEPTH:  # also the end of an alias that contains itself
            bound = f"more than {MAX_VALUES} values or {MAX_DEPTH} levels, aliases included"
            raise _TooMuch(problem=bound, problem_mark=node.start_mark)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        self._problem(node, path, "expected a plain mapping or list, got a YAML tag")
        return None

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, object]:
        values: dict[str, object] = {}
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._problem(key, path, "expected keys of plain text, got a list or mapping as key")
                continue
            inner = (*path, key.value)
            if key.value in values:
                first = self._document.lines[inner]
                self._problem(key, inner, f"expected each key once, got it again (first in line {first})")
                continue
            self._document.lines[inner] = key.start_mark.line + 1
            values[key.value] = self.value(item, inner)
        return values

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> object:
        text: str = node.value
        self._document.written[path] = text
        if "${" in text and node.tag in (_TAG + "str", _TAG + "null"):
            filled = self._substitute(node, text, path)
            return None if filled == "" and node.style is None else filled
        try:
            return _CONSTRUCTORS[node.tag](self._loader, node)
        except (ValueError, LookupError):  # another tag, `!!int word`, or more digits than an int is parsed from
            self._problem(node, path, "expected text, a number or true/false, got what its YAML tag does not fit")
            return None

    def _substitute(self, node: yaml.ScalarNode, text: str, path: Path) -> str:
        def fill(match: re.Match[str]) -> str:
            name, default = match["name"], match["default"]
            if name is None:
                if match[0] == "${":
                    self._problem(node, path, "expected ${NAME} or ${NAME:-default} (a literal ${ is $${), got neither")
                return "${"
            # As in a shell, `:-` also stands in for a variable that is set to nothing.
            found = self._env.get(name)
            if default is not None:
                return found or default
            if found is None:
                self._problem(node, path, f"expected the environment variable {name} to be set, got nothing")
            return found or ""

        return _VARIABLE.sub(fill, text)

    def _problem(self, node: yaml.Node, path: Path, sentence: str) -> None:
        self._document.problems.append(Problem(node.start_mark.line + 1, path, sentence))
