"""Fan-out: from what was read of Kafka once to any number of readers.

A *tail* holds the newest records of a partition. The *hub* owns all tails and all parked *waiters*; its verbs (append, park,
unpark, expire) never await. A *position* says where a reader stands, a *cursor* is its text. A *subscription* is what one
poll asks for; equal subscriptions at equal positions share one encoded *answer*.
"""
