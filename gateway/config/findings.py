"""What checks have in common: findings, and how what others say of a rule, a template or a file becomes one."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Collection, Iterator
from difflib import get_close_matches
from pathlib import Path as FilePath
from typing import NamedTuple

from gateway.config.document import Path
from gateway.config.section import Section

Finding = tuple[Path, str]


class Names(NamedTuple):
    """What the file has, also where it has mistakes of its own; of `doubtful` routes a part was refused already."""

    issuers: frozenset[str]
    upstreams: frozenset[str]
    doubtful: frozenset[str]


# A rule's error begins with the place inside the rule, such as `all[1].scope: `.
_PLACED = re.compile(r"(?:((?:[a-z]+|\[[0-9]+\]|\.)+): )?(.*)", re.DOTALL)
_STEP = re.compile(r"([a-z]+)|\[([0-9]+)\]")


def at_most(path: Path, section: Section, name: str, bound: str) -> Iterator[Finding]:
    """Tell of a number above another one of the same section."""
    if getattr(section, name) > getattr(section, bound):
        yield (*path, name), f"expected at most {bound}, got more"


def unknown(kind: str, name: str, known: Collection[str]) -> str:
    """Say that a name is none of those that are known, with the one that was probably meant."""
    close = get_close_matches(name, known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"expected one of the {kind}s {', '.join(sorted(known)) or '(there are none)'}, got an unknown one{hint}"


def said(path: Path, parse: Callable[..., object], *values: object, **bounds: object) -> Iterator[Finding]:
    """Parse, and tell where and what was expected if that fails."""
    try:
        parse(*values, **bounds)
    except ValueError as error:
        place, expected = _PLACED.fullmatch(str(error)).groups()  # type: ignore[union-attr]  # fits any text
        steps = [int(index) if index else name for name, index in _STEP.findall(place or "")]
        yield (*path, *steps), f"{expected}, got something else"


def pem(certfile: FilePath, keyfile: FilePath, password: str = "") -> Iterator[str]:
    """Try a certificate with its key; files that are not found have been told of already."""
    try:
        # With a password given, even an empty one, OpenSSL does not ask the terminal for one.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keyfile, password)
    except FileNotFoundError:  # has been told of already, or nobody looked
        return
    except OSError:
        yield "expected a certificate in PEM, with keyfile holding its key, got files that do not serve as these"


def authorities(cafile: FilePath) -> Iterator[str]:
    """Try a file of authorities."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile)
    except FileNotFoundError:
        return
    except OSError:
        yield "expected certificates in PEM, got a file without any"
