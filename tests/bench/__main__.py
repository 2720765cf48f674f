"""The benchmark: `make bench ARGS="broadcast --clients 1000 --servers gateway,nchan"`, or `python -m bench` in tests/."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal

import click
from bench import (
    broadcast,
    catch_up,
    chaos,
    ejected,
    held,
    killed,
    overhead,
    parked,
    proxy,
    ratio,
    restarts,
    short,
    steady,
    storm,
)
from bench.broker import Kind
from bench.catalog import SERVERS
from bench.processes import Failed
from bench.proxies import PROXIES
from bench.results import FILE, medians, table
from bench.running import Series, run, session

Numbers = tuple[int, ...]
Names = tuple[str, ...]
PLOT = Path(__file__).parents[2] / "deploy" / "bench.svg"
OWN = "gateway,gateway-shared"
EXIT_INTERRUPTED = 130  # as shells count: 128 and the number of SIGINT
PEERS = "aiohttp,nchan,pushpin"
PROXY_PEERS = "haproxy,nginx"
SLOW_SHARE = 4  # so much less is asked where a backend is slow: the proxy must not be what is slow then


class NumberList(click.ParamType[Numbers]):
    """Numbers with commas between them."""

    name = "N,N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Numbers:
        try:
            return tuple(int(part) for part in value.split(",")) if isinstance(value, str) else tuple(value)
        except ValueError:
            self.fail("expected numbers with commas between them", param, ctx)


class ServerList(click.ParamType[Names]):
    """Names of servers with commas between them."""

    name = "NAME,NAME"

    def __init__(self, catalog: Collection[str]) -> None:
        self._catalog = catalog

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Names:
        names = tuple(value.split(",")) if isinstance(value, str) else tuple(value)
        unknown = [name for name in names if name not in self._catalog]
        if unknown:
            self.fail(f"{', '.join(unknown)}: expected some of {', '.join(self._catalog)}", param, ctx)
        return names


def numbers(name: str, default: str, text: str) -> Callable[..., Any]:
    """Return an option that takes several numbers."""
    return click.option(name, type=NumberList(), default=default, show_default=True, help=text)


def number(name: str, default: int, text: str) -> Callable[..., Any]:
    """Return an option that takes a number above zero."""
    return click.option(name, type=click.IntRange(1), default=default, show_default=True, help=text)


def seconds(default: float) -> Callable[..., Any]:
    """Return the option for the length of one measurement."""
    text = "Length of one measurement."
    return click.option("--seconds", type=click.FloatRange(0.1, 600), default=default, show_default=True, help=text)


def common(servers: str) -> Callable[..., Any]:
    """Return what every scenario knows: the servers, the rounds, the broker, and `--quick`."""
    brokers = click.option("--broker", type=click.Choice(["auto", "apache", "dev"]), default="auto", show_default=True)
    return _options(servers, SERVERS, brokers)


def proxying(servers: str) -> Callable[..., Any]:
    """Return the same for scenarios of proxies, to which the broker does not matter."""
    return _options(servers, PROXIES)


def _options(servers: str, catalog: Collection[str], *others: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.option(
            "--servers", type=ServerList(catalog), default=servers, show_default=True, help="Servers to measure in turn."
        ),
        number("--rounds", 3, "How often each is measured."),
        *others,
        click.option("--quick", is_flag=True, help="Small and once: to see that it runs."),
    ]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure the gateway and its peers on this machine: servers on one core; clients, broker and producer on another."""


@main.command("broadcast")
@numbers("--clients", "1000,5000,15000", "Clients on the channel.")
@numbers("--sizes", "64,1024", "Bytes of a message.")
@seconds(4.0)
@common(f"gateway,gateway-rs256,gateway-shared,gateway-haproxy,gateway-cut,{PEERS}")
def broadcast_(
    clients: Numbers, sizes: Numbers, seconds: float, servers: Names, rounds: int, broker: Kind, quick: bool
) -> None:
    """All on one channel: CPU per delivery and time to the last client."""
    if quick:
        clients, sizes, seconds, rounds = (200,), (64,), 1.0, 1
    grid = [{"clients": count, "size": size, "seconds": seconds} for size in sizes for count in clients]
    run(broker, [Series("broadcast", "Broadcast", servers, rounds, grid, broadcast.measure, broadcast.COLUMNS)])


@main.command()
@number("--clients", 15_000, "Clients, each on a channel of its own.")
@numbers("--rates", "5000", "Records a second.")
@seconds(6.0)
@common(f"gateway,{PEERS}")
def keyed(clients: int, rates: Numbers, seconds: float, servers: Names, rounds: int, broker: Kind, quick: bool) -> None:
    """Each record for one client: latency and CPU per record."""
    if quick:
        clients, rates, seconds, rounds = 500, (500,), 2.0, 1
    grid = [{"clients": clients, "rate": rate, "size": 64, "seconds": seconds, "keyed": True} for rate in rates]
    run(broker, [Series("keyed", "Keyed", servers, rounds, grid, steady.measure, steady.COLUMNS)])


@main.command("parked")
@numbers("--clients", "15000", "Clients that wait.")
@number("--workers", 1, "Processes of the gateway.")
@number("--cycles", 100, "Broadcasts before memory is looked at again.")
@common(f"{OWN},{PEERS}")
def parked_(clients: Numbers, workers: int, cycles: int, servers: Names, rounds: int, broker: Kind, quick: bool) -> None:
    """Memory for each client that waits. For 60,000: --clients 60000 --workers 4 --cycles 8 --servers gateway."""
    if quick:
        clients, cycles, rounds = (500,), 10, 1
    grid = [{"clients": count, "workers": workers, "cycles": cycles} for count in clients]
    run(broker, [Series("parked", "Parked", servers, rounds, grid, parked.measure, parked.COLUMNS)])


@main.command()
@number("--live", 1_000, "Clients that are live meanwhile.")
@number("--megabytes", 1_000, "What one client replays.")
@number("--readers", 200, "Clients that replay the same within a second.")
@number("--shared-megabytes", 50, "What each of them replays.")
@common("gateway")
def catchup(
    live: int, megabytes: int, readers: int, shared_megabytes: int, servers: Names, rounds: int, broker: Kind, quick: bool
) -> None:
    """Replays of history from Kafka: MB/s, and what live clients notice."""
    if quick:
        live, megabytes, readers, shared_megabytes, rounds = 100, 20, 10, 5, 1
    grid = [
        {"live": live, "readers": 1, "megabytes": megabytes},
        {"live": live, "readers": readers, "megabytes": shared_megabytes},
    ]
    run(broker, [Series("catchup", "Catch-up", servers, rounds, grid, catch_up.measure, catch_up.COLUMNS)])


@main.command()
@number("--clients", 1_000, "Clients.")
@number("--keyed-rate", 1_000, "Records a second, each for one client.")
@number("--rate", 20, "Records a second for all clients.")
@seconds(5.0)
@common("gateway,aiohttp")
def kafka(
    clients: int, keyed_rate: int, rate: int, seconds: float, servers: Names, rounds: int, broker: Kind, quick: bool
) -> None:
    """From the producer through Kafka to the client."""
    if quick:
        clients, keyed_rate, seconds, rounds = 100, 200, 2.0, 1
    grid = [
        {"clients": clients, "rate": keyed_rate, "size": 64, "seconds": seconds, "keyed": True},
        {"clients": clients, "rate": rate, "size": 64, "seconds": seconds},
    ]
    run(broker, [Series("kafka", "From Kafka to the client", servers, rounds, grid, steady.measure, steady.COLUMNS)])


@main.command("short")
@number("--clients", 64, "Connections.")
@seconds(3.0)
@common("gateway,aiohttp")
def short_(clients: int, seconds: float, servers: Names, rounds: int, broker: Kind, quick: bool) -> None:
    """Short polls at the end of a channel: requests a second."""
    if quick:
        seconds, rounds = 1.0, 1
    grid = [{"clients": clients, "seconds": seconds}]
    run(broker, [Series("short", "Short polls", servers, rounds, grid, short.measure, short.COLUMNS)])


@main.command("storm")
@numbers("--clients", "15000", "Clients that come back at once.")
@common(f"gateway,{PEERS}")
def storm_(clients: Numbers, servers: Names, rounds: int, broker: Kind, quick: bool) -> None:
    """All clients reconnect at once: time until all are parked, and peak memory."""
    if quick:
        clients, rounds = (500,), 1
    grid = [{"clients": count} for count in clients]
    run(broker, [Series("storm", "Storm", servers, rounds, grid, storm.measure, storm.COLUMNS)])


@main.command("steady")
@number("--clients", 500, "Clients on the channel.")
@numbers("--rates", "20,100", "Messages a second.")
@seconds(5.0)
@common("gateway,aiohttp,nchan,nchan-multipart,pushpin")
def steady_(clients: int, rates: Numbers, seconds: float, servers: Names, rounds: int, broker: Kind, quick: bool) -> None:
    """All on one channel at a steady rate: latency and CPU."""
    if quick:
        clients, rates, seconds, rounds = 100, (20,), 2.0, 1
    grid = [{"clients": clients, "rate": rate, "size": 64, "seconds": seconds} for rate in rates]
    run(broker, [Series("steady", "Steady", servers, rounds, grid, steady.measure, steady.COLUMNS)])


@main.command("proxy")
@number("--clients", 64, "Connections.")
@number("--rate", 1_000, "Requests a second where the latency is measured.")
@seconds(4.0)
@proxying(f"gateway,gateway-jwt,aiohttp,{PROXY_PEERS}")
def proxy_(clients: int, rate: int, seconds: float, servers: Names, rounds: int, quick: bool) -> None:
    """GET through a proxy to a backend: requests a second, CPU for each, and what the proxy adds to the latency."""
    if quick:
        seconds, rounds = 1.0, 1
    grid = [{"clients": clients, "rate": rate, "seconds": seconds}]
    run("dev", [Series("proxy", "Proxy", servers, rounds, grid, proxy.measure, proxy.COLUMNS, PROXIES)])


@main.command("ratio")
@number("--clients", 64, "Connections.")
@number("--pairs", 20, "How often each of the two is asked.")
@seconds(0.8)
@proxying(f"aiohttp,{PROXY_PEERS}")
def ratio_(clients: int, pairs: int, seconds: float, servers: Names, rounds: int, quick: bool) -> None:
    """Ask it beside the gateway, in turns of a second, for the same: how many times the CPU."""
    if quick:
        pairs, seconds, rounds = 3, 0.3, 1
    grid = [{"clients": clients, "pairs": pairs, "seconds": seconds}]
    run("dev", [Series("ratio", "Ratio", servers, rounds, grid, ratio.measure, ratio.COLUMNS, PROXIES)])


@main.command("held")
@numbers("--clients", "3000,9000", "Long polls; a proxy opens two connections for each.")
@proxying(f"gateway,{PROXY_PEERS}")
def held_(clients: Numbers, servers: Names, rounds: int, quick: bool) -> None:
    """Long polls through a proxy to three backends that hold them: memory for each, and how evenly they are dealt out."""
    if quick:
        clients, rounds = (300,), 1
    grid = [{"clients": count} for count in clients]
    run("dev", [Series("held", "Held", servers, rounds, grid, held.measure, held.COLUMNS, PROXIES)])


@main.command()
@number("--clients", 3_000, "Long polls that are held when a backend dies.")
@number("--rate", 2_000, "Requests a second.")
@seconds(6.0)
@proxying(f"gateway,{PROXY_PEERS}")
def failover(clients: int, rate: int, seconds: float, servers: Names, rounds: int, quick: bool) -> None:
    """Three backends: restarted in turn, one killed with its polls and back again, one slow for a while."""
    slow_start = 5.0
    if quick:
        clients, rate, seconds, slow_start, rounds = 300, 300, 3.0, 1.0, 1
    restarted = [{"clients": 64, "rate": rate, "pause": seconds / 2}]
    died = [{"clients": clients, "rate": rate, "slow_start": slow_start}]
    # Each request that a slow backend has is a client's for seconds.
    slow = [{"clients": rate, "rate": rate // SLOW_SHARE, "seconds": seconds}]
    series = [
        Series("restarts", "Restarts", servers, rounds, restarted, restarts.measure, restarts.COLUMNS, PROXIES),
        Series("killed", "Killed", servers, rounds, died, killed.measure, killed.COLUMNS, PROXIES),
        Series("ejected", "Ejected", servers, rounds, slow, ejected.measure, ejected.COLUMNS, PROXIES),
    ]
    run("dev", series)


@main.command("all")
@click.option("--broker", type=click.Choice(["auto", "apache", "dev"]), default="auto", show_default=True)
@click.option("--quick", is_flag=True, help="Small and once: to see that it runs.")
@click.pass_context
def all_(context: click.Context, broker: Literal["auto", "apache", "dev"], quick: bool) -> None:
    """Every scenario with its defaults, and the plot."""
    for command in (broadcast_, keyed, parked_, catchup, kafka, short_, storm_, steady_):
        context.invoke(command, broker=broker, quick=quick)
    for command in (proxy_, ratio_, held_, failover):
        context.invoke(command, quick=quick)
    for command in (overhead_, chaos_):
        context.invoke(command, broker=broker, quick=quick)
    if not quick:
        context.invoke(parked_, clients=(60_000,), workers=4, cycles=8, servers=("gateway",), rounds=1, broker=broker)
        context.invoke(plot)


@main.command("chaos")
@click.option("--readers", type=ServerList(chaos.READERS), default=",".join(chaos.READERS), show_default=True, help="Clients.")
@number("--rate", 200, "Records a second.")
@seconds(600.0)
@number("--seed", 1, "Of the random faults.")
@click.option("--broker", type=click.Choice(["auto", "apache", "dev"]), default="auto", show_default=True)
@click.option("--quick", is_flag=True, help="Small and once: to see that it runs.")
def chaos_(readers: Names, rate: int, seconds: float, seed: int, broker: Kind, quick: bool) -> None:
    """Run the clients over a bad network to gateways that are restarted: each record has to be processed exactly once."""
    if quick:
        seconds = 20.0
    with session(broker) as (setting, results):
        parameters = {"rate": rate, "seconds": seconds, "seed": seed}
        for name, figures in chaos.measure(list(readers), setting, **parameters).items():
            results.add("chaos", name, parameters, figures)
        click.echo(f"\nChaos\n{table(medians(results.rows), chaos.COLUMNS)}\n")
        if any(row["figures"]["errors"] for row in results.rows):
            raise Failed("not every record was processed exactly once, in order")


@main.command("overhead")
@click.option(
    "--readers", type=ServerList(overhead.READERS), default=",".join(overhead.READERS), show_default=True, help="Clients."
)
@number("--rate", 10_000, "Messages a second.")
@seconds(10.0)
@number("--burst", 200_000, "Messages that are found at once.")
@number("--rounds", 2, "How often each is measured.")
@click.option("--broker", type=click.Choice(["auto", "apache", "dev"]), default="auto", show_default=True)
@click.option("--quick", is_flag=True, help="Small and once: to see that it runs.")
def overhead_(readers: Names, rate: int, seconds: float, burst: int, rounds: int, broker: Kind, quick: bool) -> None:
    """One client alone: its CPU for a message at a rate, and how many it takes at most."""
    if quick:
        rate, seconds, burst, rounds = 500, 2.0, 5_000, 1
    grid = [{"rate": rate, "seconds": seconds, "burst": burst}]
    catalog = {name: name for name in readers}
    run(broker, [Series("overhead", "Overhead", readers, rounds, grid, overhead.measure, overhead.COLUMNS, catalog)])


@main.command()
@click.option("--results", type=click.Path(path_type=Path, exists=True), default=FILE, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=PLOT, show_default=True, help="SVG or PNG.")
def plot(results: Path, output: Path) -> None:
    """Draw the newest results."""
    from bench.plotting import draw  # noqa: PLC0415  # its library is not needed to measure

    draw(results, output)
    click.echo(output)


def start() -> None:
    """Run the command; what a measurement lacks is told in one line."""
    try:
        main(prog_name="bench")
    except Failed as failure:
        raise SystemExit(f"bench: {failure}") from failure
    except KeyboardInterrupt:
        raise SystemExit(EXIT_INTERRUPTED) from None


if __name__ == "__main__":
    start()
