"""The times that depend on each other, in seconds: of a request, of a shutdown, and of a reload and other commands.

Each is the longest time for its step. A margin is added to another time. What is under way may go on for a grace and is
cut short then; a drain is the time for all of it. docs/architecture.md has the budget of a shutdown as a table.
"""

from typing import Final, NamedTuple

# A request: it is answered within SEND_START_TIMEOUT + the exporter's timeout + SEND_MARGIN + COMMIT_TIMEOUT.

RETRY_AFTER: Final = 10  # in a refusal: long enough for a backend to come back, short enough for a change to matter
SEND_TIMEOUT: Final = 30.0  # for one `send` of an exporter whose settings have no timeout
SEND_START_TIMEOUT: Final = 10.0  # until a synchronous exporter sends a batch: "later" is better than no answer
SEND_MARGIN: Final = 1.0  # above an exporter's timeout for its answer, and above its grace for its threads to end
COMMIT_TIMEOUT: Final = 10.0  # for the queue's commit: a refusal may lose a change, since Statsig documents no retry


class Share(NamedTuple):
    """The longest time for a step, in seconds, and its largest share of the time for a shutdown or a longer step."""

    longest: float
    share: float

    def of(self, timeout: float) -> float:
        """Seconds for this step within a shutdown, or a step, that has this time."""
        return min(self.longest, timeout * self.share)


# A shutdown: REQUEST_DRAIN + QUEUE_DRAIN leave a quarter of SHUTDOWN_TIMEOUT for closing.

SHUTDOWN_TIMEOUT: Final = 20.0  # for all of it: supervisors usually allow that
SHUTDOWN_MARGIN: Final = 1.0  # above the timeout of the shutdown, to close what was stopped
LONGEST_SHUTDOWN: Final = 365 * 86_400.0  # an infinite time is more than a lock can wait for
# These four count from its beginning. What the others cut short is answered in the rest of REQUEST_DRAIN.
REQUEST_DRAIN: Final = Share(10.0, 1 / 2)  # for the requests in flight
LAST_HEADS: Final = Share(1.0, 1 / 2)  # of REQUEST_DRAIN, so 1/4 of all, for heads that are still being read
BODY_GRACE: Final = Share(5.0, 1 / 4)  # for bodies that are still being read
SYNCHRONOUS_GRACE: Final = Share(3.0, 1 / 4)  # for what synchronous exporters are sending
SERVER_CLOSING: Final = 3.0  # above REQUEST_DRAIN, to close the connections; at the end, for the page and for checks
PAGE_DRAIN: Final = 0.5  # for what the live page is answering, once no command is carried out any more
COMMAND_SHARE: Final = 1 / 2  # of the time that is left then, for a command that is being carried out
AUDIT_LOG_CLOSING: Final = 1.0  # for comparisons with audit logs that are under way
QUEUE_DRAIN: Final = 5.0  # for what waits in the queue; the rest is sent after the next start
READERS_CLOSING: Final = 3.0  # for the last report of the metrics, after all of the above
HANGING_SEND: Final = 3.0  # after the shutdown of a queued exporter, until a send that hangs is abandoned

# A reload and other commands: BATCH_FINISH and REPLAY_TIMEOUT are below COMMAND_TIMEOUT, so that they are answered.

COMMAND_TIMEOUT: Final = 60.0  # for an answer of the control socket: the service may have to wait for its disk
BATCH_FINISH: Final = 30.0  # for the batch of an exporter that a reload replaces; its backend may be what hangs
REPLAY_TIMEOUT: Final = 45.0  # in which synchronous exporters have to take a page of replayed dead letters
