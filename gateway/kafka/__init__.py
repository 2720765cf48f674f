"""Everything that talks to Kafka.

A *node* is a broker by its id, an *address* where it listens, a *group* the purpose of a connection: requests of different
groups never wait for each other. The *cluster* is what metadata told. The *feed* keeps the tails of *followed* topics: one long
poll (a *lane*) per leader for all healthy partitions; a *sick* partition is nursed on a connection of its own. The *archive*
reads what lies before the tails, in *blocks*. The *producer* writes. `KafkaLog` joins them.
"""
