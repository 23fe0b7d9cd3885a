"""The table of commands on a queue: which handler carries out each, on a running service and on a stopped one.

`Assembly` adds `status` and `journal`, and `Reloader` adds `reload`.
"""

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future

from statsig_otel.exporters.consumer import Batch, Receipt, refused
from statsig_otel.exporters.delivery.sender import QueueSender
from statsig_otel.exporters.delivery.synchronous import SynchronousConsumer
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.routing import Routing
from statsig_otel.plugin.control.command import ChangeableQueue
from statsig_otel.plugin.control.dead_letter_commands import DeadLetters
from statsig_otel.plugin.control.queue_commands import RunningExporters, StoppedExporters
from statsig_otel.plugin.control.socket import Handler
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.record.mapper import Mapper


def handlers(
    queue: DurableQueue,
    *,
    senders: Mapping[str, QueueSender],
    intakes: Mapping[str, Intake],
    routing: Routing,
    synchronous: SynchronousConsumer,
    before_resume: Callable[[], None] = lambda: None,
) -> dict[str, Handler]:
    """The commands of a running service. A reload asks for them again.

    Senders and intakes are given by the ids of their exporters and receivers. `before_resume` is called before an
    exporter tries again: a file with its key may have changed.
    """

    def deliver(batch: Batch) -> Future[Receipt]:
        return synchronous.consume(batch, routing.route(batch.receiver))

    mappers = {name: intake.mapper for name, intake in intakes.items()}
    exporters = RunningExporters(queue, senders, routing.synchronous, intakes, before_resume)
    dead = DeadLetters(
        queue=queue, routing=routing, mappers=mappers, deliver=deliver, exporters=senders, is_running=True
    )
    return {"queue": exporters.status, **_changing(exporters, dead)}


def stopped_handlers(
    queue: ChangeableQueue,
    *,
    mappers: Mapping[str, Mapper],
    routing: Routing,
    configured: Collection[str] | None,
) -> dict[str, Handler]:
    """The commands that change a queue, on the queue of a stopped service.

    Without a configuration there are no mappers, the routing is empty, and `configured` is None.
    """

    def deliver(batch: Batch) -> Future[Receipt]:
        names = ", ".join(routing.route(batch.receiver).synchronous)
        why = f"{names} has no sending queue, so nothing can wait for it: replay it while the service runs"
        return refused(why, reason="not_running")

    exporters = StoppedExporters(queue, configured, routing.synchronous)
    dead = DeadLetters(
        queue=queue, routing=routing, mappers=mappers, deliver=deliver, exporters=configured, is_running=False
    )
    return _changing(exporters, dead)


def _changing(exporters: RunningExporters | StoppedExporters, dead: DeadLetters) -> dict[str, Handler]:
    return {
        "queue resume": exporters.resume,
        "queue skip": exporters.skip,
        "queue remove": exporters.remove,
        "dead-letters replay": dead.replay,
        "dead-letters drop": dead.drop,
    }
