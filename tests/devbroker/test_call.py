"""Which places a request names, whatever its API calls them."""

import pytest

from gateway.devbroker.call import places


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, []),
        ({"topics": None}, []),
        ({"topics": ["a", "b"]}, [("a", None), ("b", None)]),
        ({"topics": [{"topic": "a", "topic_id": b""}]}, [("a", None)]),
        ({"topics": [{"topic": "a", "partitions": [1, 2]}]}, [("a", None), ("a", 1), ("a", 2)]),
        ({"topics": [{"topic": "a", "partitions": [{"partition": 3}]}]}, [("a", None), ("a", 3)]),
        ({"topics": [{"name": "a", "partitions": [{"partition_index": 3}]}]}, [("a", None), ("a", 3)]),
        ({"create_topic_requests": [{"topic": "a"}]}, [("a", None)]),
        ({"topic_partitions": [{"topic": "a"}]}, [("a", None)]),
    ],
)
def test_places(body, named):
    assert list(places(body)) == named
