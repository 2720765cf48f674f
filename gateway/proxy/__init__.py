"""What stands between a route and a backend.

Glossary. A *route* says which requests it takes (its *match*) and what becomes of them. An *upstream* is a named group of
*targets*, the addresses of one backend. An *exchange* is one request of a client with its answer; it is *working* while the
backend is expected to answer, *held* while it is a long poll that waits on purpose. It takes one or more *attempts*, each
with one target and with a *verdict*: ok, failure, or neutral where the backend is not to blame. Too many failures lead to an
*ejection*, which takes a target out for a time, or open its *breaker*, which then lets single trials through. The *budget*
bounds how many attempts may be repeats.
"""
