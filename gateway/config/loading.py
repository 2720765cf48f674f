"""Reading the configuration file and reporting everything that is wrong with it, at once.

Theory of operation. A file is read in three steps: the document (syntax, variables), the sections (each value by itself),
the checks (values against each other). A mistake in one step must not hide those of the next, so before the checks run,
the parts that the sections refused are cut out, and the checks see what is left.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from gateway.config.checks import advise, check
from gateway.config.document import MAX_DEPTH, Path, Problem, parse
from gateway.config.explaining import explain
from gateway.config.findings import Names
from gateway.config.sections import Config

MAX_FILE_BYTES = 4 << 20


class ConfigInvalid(Exception):
    """The configuration cannot be used; `problems` has all reasons, in the order of their lines."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = tuple(sorted(set(problems), key=lambda problem: (problem.line, str(problem.path))))
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """Give one line for each problem, such as `gateway.yaml:3: server.port: expected …, got …`."""
        return [problem.show(self.source) for problem in self.problems]


@dataclass(frozen=True, slots=True)
class Inspected:
    """A configuration that can be used, what is unwise in it, and the text that it was made of."""

    config: Config
    source: str
    advice: tuple[Problem, ...]
    text: str | bytes
    base: FilePath | None

    def warnings(self) -> list[str]:
        """Give one line for each piece of advice."""
        return [found.show(self.source) for found in self.advice]


def load(path: str | FilePath, env: Mapping[str, str]) -> Config:
    """Read and check a file; raises ConfigInvalid. Relative paths in it are relative to its folder."""
    return inspect(path, env).config


def inspect(path: str | FilePath, env: Mapping[str, str], *, workers: int | None = None) -> Inspected:
    """Do the same, and collect advice. `workers` takes the place of server.workers."""
    file = FilePath(path)
    try:
        with file.open("rb") as stream:
            text = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        sentence = f"expected a file that can be read, got: {error.strerror or error}"
        raise ConfigInvalid(str(path), [Problem(1, (), sentence)]) from error
    return _inspect(text, env, str(path), file.parent.absolute(), workers)


def read(text: str | bytes, env: Mapping[str, str], *, source: str = "gateway.yaml", base: FilePath | None = None) -> Config:
    """Make a Config of YAML text; raises ConfigInvalid. `base` None: files that it names are not looked for."""
    return _inspect(text, env, source, base).config


def json_schema() -> dict[str, Any]:
    """Give the JSON Schema of the file as it is written: wherever a number or switch may be, `${NAME}` may be as well."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **_open(Config.model_json_schema())}
    return {**schema, "title": "Configuration of the longpoll gateway"}


def _open(node: Any) -> Any:
    """Let `${NAME}` stand in the place of every scalar that is not free text."""
    if isinstance(node, list):
        return [_open(item) for item in node]
    if not isinstance(node, dict):
        return node
    opened = {key: _open(value) for key, value in node.items()}
    if node.get("type") in ("integer", "number", "boolean") or "enum" in node or "const" in node:
        aside = {key: opened.pop(key) for key in ("default", "description", "title") if key in opened}
        return {"anyOf": [opened, {"type": "string", "pattern": r"\$\{"}], **aside}
    return opened


def _inspect(
    text: str | bytes, env: Mapping[str, str], source: str, base: FilePath | None, workers: int | None = None
) -> Inspected:
    if len(text) > MAX_FILE_BYTES:
        raise ConfigInvalid(source, [Problem(1, (), f"expected at most {MAX_FILE_BYTES} bytes, got more")])
    document = parse(text, env)
    problems = list(document.problems)
    if document.values is None and problems:  # there is nothing to look at
        raise ConfigInvalid(source, problems)
    values = document.values if document.values is not None else {}
    if workers is not None:
        values = _with_workers(values, workers)
    try:
        config: Config | None = _validate(values, base)
    except ValidationError as error:
        known = {problem.path for problem in problems}
        found = [explain(document, _schema(), detail) for detail in error.errors(include_url=False)]
        problems += [problem for problem in found if problem.path not in known]
        config = None
    blamed = [problem.path for problem in problems]
    for path, sentence in _check(config, values, base, blamed):
        if not any(_related(path, other) for other in blamed):
            problems.append(Problem(document.line(path), path, sentence))
    if problems or config is None:
        raise ConfigInvalid(source, problems)
    advice = tuple(Problem(document.line(path), path, sentence) for path, sentence in advise(config))
    return Inspected(config, source, advice, text, base)


def _with_workers(values: object, workers: int) -> object:
    """Put the value in where there is room for it; what the file has in place of a section is told of as usual."""
    if not isinstance(values, dict) or not isinstance(server := values.get("server", {}), dict):
        return values
    return {**values, "server": {**server, "workers": workers}}


def _validate(values: object, base: FilePath | None) -> Config:
    return Config.model_validate(values, context={"base": base})


@cache
def _schema() -> dict[str, Any]:
    return Config.model_json_schema()


def _check(config: Config | None, values: object, base: FilePath | None, blamed: Collection[Path]) -> list[tuple[Path, str]]:
    left = config or _prune(values, base)
    names = Names(
        issuers=frozenset(_mapping(_mapping(_mapping(values).get("auth")).get("issuers"))),
        upstreams=frozenset(_mapping(_mapping(values).get("upstreams"))),
        doubtful=frozenset(str(path[1]) for path in blamed if path[:1] == ("routes",) and len(path) > 1),
    )
    return list(check(left, names)) if left is not None else []


def _mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, dict) else {}


def _related(one: Path, other: Path) -> bool:
    shorter = min(len(one), len(other))
    return shorter > 0 and one[:shorter] == other[:shorter]


def _prune(values: object, base: FilePath | None) -> Config | None:
    """Make a Config of what is left when everything that the sections refuse is cut out; None if that is nothing."""
    if not isinstance(values, dict):
        return None
    left = copy.deepcopy(values)
    for _ in range(MAX_DEPTH):  # what is cut may leave what is above it incomplete
        try:
            return _validate(left, base)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                loc = tuple(step for step in detail["loc"] if step != "[key]")
                match detail["type"], loc:
                    case "missing", ("upstreams", name, "targets"):
                        # All else of an upstream is worth a look without them.
                        left["upstreams"][name]["targets"] = ["localhost:1"]
                    case "missing", _ if loc != _NEEDED:
                        _cut(left, loc[:-1])
                    case _ if loc != _NEEDED:
                        _cut(left, loc)
        # The one value without which there is no Config at all.
        left.setdefault("kafka", {})["bootstrap_servers"] = ["localhost:9092"]
    return None


_NEEDED: Path = ("kafka", "bootstrap_servers")


def _cut(values: dict[Any, Any], loc: Path) -> None:
    """Remove the value at a path; of a list, all of it, for the places of the other items would change."""
    for depth, step in enumerate(loc):
        inner = values.get(step)
        if depth == len(loc) - 1 or not isinstance(inner, dict):
            values.pop(step, None)
            return
        values = inner
