"""What operators ask: metrics, readiness, life."""

import pytest
from livegateway import Live, live, token
from prometheus_client.parser import text_string_to_metric_families
from waiting import eventually

from gateway import metrics as metrics_module


async def test_metrics_are_those_that_are_documented(gateway: Live):
    """No name more, and none less that is counted from the start; every family has its help."""
    gateway.broker.append("news", 0, [b"1"])
    await gateway.poll("news", from_="earliest", wait=5)
    await gateway.publish("news", b"2")
    reply = await gateway.ask("GET", "/metrics", port=gateway.gateway.admin_port)
    assert reply.headers["Content-Type"].startswith("text/plain")
    assert reply.headers["Cache-Control"] == "no-store"
    families = {family.name: family for family in text_string_to_metric_families(reply.body.decode())}
    documented = {described.name.removesuffix("_total"): described for described in metrics_module.documented()}
    assert set(families) == set(documented)
    for name, family in families.items():
        assert family.documentation == documented[name].help
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels <= set(documented[name].labels)


async def test_open_metrics_is_given_to_who_asks_for_it(gateway: Live):
    """By Accept."""
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    reply = await gateway.ask("GET", "/metrics", headers=accept, port=gateway.gateway.admin_port)
    assert reply.headers["Content-Type"].startswith("application/openmetrics-text")
    assert reply.body.endswith(b"# EOF\n")


async def test_parked_polls_are_counted_by_pattern(gateway: Live):
    """Never by the name that a client gave; those of several channels under each."""
    rooms = token(rooms=["a", "b"])
    held = [gateway.parking("chat/a", token=rooms), gateway.parking("chat/b", "news", token=rooms)]
    await gateway.parked(2)
    shown = await gateway.metrics()
    assert shown["gateway_parked_waiters{chat/{room}}"] == 2
    assert shown["gateway_parked_waiters{news}"] == 1
    assert (await gateway.ready()).json["parked_polls"] == 2
    for task in held:
        task.cancel()
    await gateway.parked(0)
    shown = await gateway.metrics()
    assert shown["gateway_parked_waiters{chat/{room}}"] == 0


async def test_tails_and_lag_are_shown_by_topic(gateway: Live):
    """While the topic is followed."""
    await gateway.poll("news")
    gateway.broker.append("news", 0, [b"x" * 1_000])
    assert (await gateway.poll("news", wait=5, from_="-1")).status == 200

    async def shown():
        found = await gateway.metrics()
        return found if found.get("gateway_tail_bytes{news}", 0) > 1_000 else None

    found = await eventually(shown)
    assert found["gateway_consumer_lag_records{0,news}"] == 0
    assert found["gateway_fetched_records_total{news}"] == 1
    assert found["gateway_fetched_bytes_total{news}"] > 1_000
    assert found["gateway_up"] == found["gateway_ready"] == 1


async def test_ready_is_who_can_reach_kafka():
    """503 with the reason while it cannot, and the facts all the same."""
    async with live() as gateway:
        await eventually(lambda: _status(gateway, 200))
        await gateway.broker.stop()
        await eventually(lambda: _status(gateway, 503))
        reply = await gateway.ready()
        assert reply.json["ready"] is False
        assert list(reply.json["failed"]) == ["kafka"]
        assert reply.json["failed"]["kafka"]
        assert reply.json["kafka"]["connected"] is False
        assert (await gateway.ask("GET", "/livez")).status == 200
        assert (await gateway.metrics())["gateway_ready"] == 0


async def _status(gateway: Live, status: int) -> bool:
    return (await gateway.ready()).status == status


async def test_sick_partitions_are_named(gateway: Live):
    """One that fails does not make the process unready: the others go on."""
    await gateway.poll("news")
    with gateway.broker.faults.error(56, topic="news", partition=1):

        async def sick():
            return (await gateway.ready()).json["kafka"]["sick_partitions"]

        named = await eventually(sick)
        assert {(place["topic"], place["partition"]) for place in named} == {("news", 1)}
        assert (await gateway.ready()).status == 200


async def test_sources_of_keys_are_shown(tmp_path):
    """Each file and URL with the number of its keys, and what is wrong with it; never a key."""
    secret = "a secret in a file, which is long enough"
    file = tmp_path / "secret"
    file.write_text(secret)
    issuers = {
        "test": {"keys": [{"algorithm": "HS256", "file": str(file)}]},
        "other": {"keys": [], "jwks_url": "http://127.0.0.1:9/keys", "algorithms": ["RS256"]},
    }
    async with live(auth={"issuers": issuers}) as gateway:

        async def failed():
            keys = (await gateway.ready()).json["keys"]
            return keys if keys[1]["error"] else None

        first, second = await eventually(failed)
        assert first == {"issuer": "test", "source": str(file), "keys": 1, "error": None}
        assert (second["issuer"], second["source"], second["keys"]) == ("other", "http://127.0.0.1:9/keys", 0)
        assert secret not in (await gateway.ready()).body.decode()


@pytest.mark.parametrize("path", ["/metrics", "/readyz", "/livez", "/v1/channels"])
async def test_one_listener_for_all(path: str):
    """With `single_listener` everything is on the public port."""
    async with live(server={"single_listener": True}) as gateway:
        assert gateway.gateway.admin_port == gateway.gateway.port
        await eventually(lambda: _status(gateway, 200))
        assert (await gateway.ask("GET", path, headers=gateway.bearer())).status == 200


async def test_the_loop_is_watched(gateway: Live):
    """A lag is measured several times a second."""

    async def measured():
        return (await gateway.metrics())["gateway_loop_lag_seconds_count"] >= 2

    await eventually(measured)
