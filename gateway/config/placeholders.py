"""What the templates of routes and upstreams refer to, held against what there is (sans-I/O)."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.auth.templates import Header, Template, parse_template


def parse(text: str) -> Template:
    """Parse a template that may name header fields; raises ValueError, saying what was expected."""
    return parse_template(text, headers=True)


def is_plain(template: Template) -> bool:
    """Tell whether it gives the same text for every request."""
    return not (template.parameters or template.claims or any(isinstance(part, Header) for part in template.parts))


def mistakes(text: str, parameters: frozenset[str], *, public: bool) -> Iterator[str]:
    """Say what a route with these parameters cannot fill in."""
    try:
        template = parse(text)
    except ValueError as error:
        yield f"{error}, got something else"
        return
    if not template.parameters <= parameters:
        known = ", ".join(f"{{{name}}}" for name in sorted(parameters)) or "none"
        yield f"expected no parameters but those of the route's path: {known}, got another"
    if template.claims and public:
        yield "expected no claims (the route is public, so that there may be no token), got a claim"
