"""What stands between a route and a backend.

Glossary. A *route* is a rule that picks requests and says which *upstream* they go to: a named group of *targets*, each one
address of a backend. An *exchange* is one request and its answer; it is *held* where the backend keeps it open on purpose, and
*working* else. An *attempt* is one try of an exchange at one target, its *verdict* is what it says about the target. A target
that fails too often is *ejected* for a while; its *breaker* stops attempts and lets trials through; a *budget* bounds how many
attempts may be repeats.
"""
