"""The paths that the gateway answers itself on the public listener; no route can take them."""

from __future__ import annotations

from collections.abc import Container


class OwnPaths(Container[str]):
    """Paths, and all `below` some of them; `in` tells whether a path is one."""

    def __init__(self, exact: frozenset[str], below: tuple[str, ...] = ()) -> None:
        self._exact = exact
        self._below = below

    def __repr__(self) -> str:
        return f"<OwnPaths {', '.join(sorted(self._exact))}{''.join(f', {path}*' for path in self._below)}>"

    def __contains__(self, path: object) -> bool:
        return path in self._exact or (isinstance(path, str) and path.startswith(self._below))


def own_paths(prefix: str, *, single_listener: bool) -> OwnPaths:
    """Return them. With a `single_listener` the paths of operators are among them."""
    exact = {f"{prefix}/{name}" for name in ("subscribe", "publish", "channels", "client.js")} | {"/openapi.json", "/livez"}
    return OwnPaths(frozenset(exact | {"/readyz", "/metrics"} if single_listener else exact), (f"{prefix}/cursors/",))
