"""The longpoll gateway: Kafka for every HTTP client.

Glossary. A *record* is one entry of a Kafka *partition*, known by its *offset*. A *channel* is what a client names; it
maps to a topic, a key filter and a rule. A *cursor* is a position: one offset per partition, no permission. A *tail* is the
newest part of a partition, in memory. A *waiter* is a parked poll; an append *wakes* it, and it reads again.
"""
