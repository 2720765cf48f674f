"""A Kafka broker for development and tests, in this process and in memory.

Glossary. A *node* is one listener with its own port and id; several nodes make a *cluster* that shares all data. A *log* is one
partition: *batches* as raw bytes, in the order of their offsets. A *fault* makes the broker misbehave on purpose. A fetch is
*parked* while its long poll waits for data.
"""
