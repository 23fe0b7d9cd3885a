"""Is nothing lost on the way through replicas, Kafka and Collectors, whatever is killed? Three runs of 52 kills each.

A cluster of three Apache Kafka brokers starts once, with three replicas of the service behind nginx, and two Collectors
in a consumer group (examples/kafka). Webhooks are sent without a break, and one part after the other is killed with
SIGKILL and started again. In the first half of a run only replicas are killed, then brokers and Collectors too.

After each half all that was acknowledged has to be at the backend, each record as it is in the topic. No change may be
in the topic more often than its webhook was passed to a replica. And in the first half the Collectors may deliver
nothing twice. (Later they may: a broker that is killed may be the one that keeps their offsets.) Run it beside as
little else as possible: it takes half an hour.

    python proofs/kafka_kills.py [--runs N] [--quick]
"""

import argparse
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import measure
from tests.e2e.kafka_chain import Chain
from tests.e2e.kafka_kills import READ_AGAIN, ReceivedRecords, Sender, judge, kill_under_load
from tests.e2e.otelcol import UnavailableError
from tests.peers.otlp_servers import HttpSink

_SENDERS = 3


def main() -> int:
    """Run the proof, and return 1 if it fails."""
    parser = argparse.ArgumentParser(description="Is nothing lost on the way through replicas, Kafka and Collectors?")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one run of 10 kills")
    options = parser.parse_args()
    runs = 1 if options.quick else options.runs
    first = {"replicas": 2 if options.quick else 12}
    second = (
        {"replicas": 2, "brokers": 3, "consumers": 3}
        if options.quick
        else {"replicas": 10, "brokers": 16, "consumers": 14}
    )
    print(f"{measure.machine()}; load before: {os.getloadavg()[0]:.1f}")
    failed = False
    senders: list[Sender] = []
    with TemporaryDirectory() as folder, HttpSink() as sink:
        try:
            chain = Chain(Path(folder), sink.url)
        except UnavailableError as error:
            print(f"!! THE CHAIN CAN'T BE RUN HERE: {error}")
            return 1
        delivered = ReceivedRecords(sink)
        with chain:
            read_again = 0
            for half in range(2 * runs):
                kills = (first, second)[half % 2]
                began = time.monotonic()
                now = [Sender(2 + len(senders) + number, chain.url) for number in range(_SENDERS)]
                senders += now
                kill_under_load(chain, now, **kills, seed=options.seed + half)
                verdict = judge(chain, senders, delivered, read_again=read_again if kills is first else None)
                read_again = verdict.figures[READ_AGAIN]
                failed = failed or bool(verdict.faults)
                killed = ", ".join(f"{count} {kind}" for kind, count in kills.items())
                took = f"{time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}"
                print(f"run {half // 2 + 1}, killed {killed} ({took}). So far: {verdict}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
