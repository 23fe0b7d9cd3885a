"""Decides the answer to each webhook request, from its headers to its body, without I/O.

It follows docs/webhook.md row by row. The adapter of a web framework calls `Intake.begin` with the headers,
`Request.feed` with each part of the body, and `Request.finish` at its end. The result is the answer, or a batch that a
consumer has to accept first.
"""

import logging
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from operator import attrgetter
from time import perf_counter
from typing import Final

from statsig_otel._arguments import check_type
from statsig_otel._instruments import collecting
from statsig_otel._journal import journal
from statsig_otel._log_throttle import LogThrottle
from statsig_otel._telemetry import ReceiverCounts, request_body_size, request_duration
from statsig_otel.exporters.consumer import Batch, Invalid, Receipt, RefusedError, check_receipt
from statsig_otel.plugin.receiver.answer import Answer, AnsweredError, refusal
from statsig_otel.plugin.receiver.bodies import Bodies, Body, Limits
from statsig_otel.plugin.receiver.counting import begin_counts, ignored_names
from statsig_otel.plugin.record.mapper import Mapped, Mapper
from statsig_otel.plugin.webhook.body import MAX_URL_VERIFICATION_SIZE, ParsedBody, parse, parse_url_verification
from statsig_otel.plugin.webhook.errors import MalformedBodyError, UnauthorizedError, check_body
from statsig_otel.plugin.webhook.secret import SECRETS_SETTING, THEN_RELOAD
from statsig_otel.plugin.webhook.signature import SIGNATURE_HEADER, TIMESTAMP_HEADER, Verification, Verifier

_logger: Final = logging.getLogger(__name__)

_READ: Final = tuple(
    name.lower().encode() for name in ("Content-Encoding", "Content-Length", SIGNATURE_HEADER, TIMESTAMP_HEADER)
)
"""The headers that are read."""

_NO_CODING: Final = (b"", b"identity")

_HALF_HOUR: Final = 1800
_FARTHEST_ZONE: Final = 14 * 3600
_NEAR: Final = 120
"""Seconds: the steps of time zones, the one that is farthest from UTC, and how exactly clocks show it."""

_DIGITS: Final = re.compile(rb"[0-9]{1,19}")
_HEADERS: Final = "pairs of a name and a value in bytes, such as (b'host', b'h.com')"


def _unauthorized(error: UnauthorizedError) -> Answer:
    return refusal(HTTPStatus.UNAUTHORIZED, error.reason, str(error))


def _with_both_clocks(error: UnauthorizedError, timestamps: Sequence[bytes], now_ns: int) -> UnauthorizedError:
    """The error of a webhook with a wrong time says both times: who sees them knows which clock is wrong.

    It also says if they differ as time zones do: by whole or half hours, give or take two minutes.
    """
    if error.reason != "timestamp_outside_tolerance":
        return error
    its, here = (datetime.fromtimestamp(ms // 1000, UTC) for ms in (int(timestamps[0]), now_ns // 1_000_000))
    apart = abs(int(timestamps[0]) - now_ns // 1_000_000) / 1000
    nearest = round(apart / _HALF_HOUR) * _HALF_HOUR
    is_zone = 0 < nearest <= _FARTHEST_ZONE and abs(apart - nearest) <= _NEAR
    zone = (
        f". About {nearest / 3600:g} h apart: most likely one of the clocks is set by another time zone"
        if is_zone
        else ""
    )
    form = "%H:%M:%S" if its.date() == here.date() else "%Y-%m-%d %H:%M:%S"
    return UnauthorizedError(
        error.reason, f"{error}; the webhook's time is {its:{form}}, this machine's {here:{form}} UTC{zone}"
    )


def _refuse(status: HTTPStatus, reason: str) -> AnsweredError:
    return AnsweredError(refusal(status, reason))


class Intake:
    """Decides the answers of one receiver, with its secrets, mapping and limits. Safe to use from several threads.

    Args:
        verifier: Checks the signatures. It may be replaced at any time.
        mapper: Makes the records. It may be replaced too.
        name: The receiver's id, such as `statsig` or `statsig/eu`.
        limits: The limits for clients that are not yet known.

    Raises:
        TypeError: An argument has another type.

    Example:
        >>> import time
        >>> from statsig_otel.plugin import Intake, Verifier, sign
        >>> intake = Intake(verifier=Verifier(["webhook-..."]))
        >>> body, now_ns = b'{"data": [{"eventName": "statsig::gate_exposure"}]}', time.time_ns()
        >>> headers = sign(body, secret="webhook-...", timestamp_ms=now_ns // 1_000_000)
        >>> request = intake.begin([(name.lower().encode(), value.encode()) for name, value in headers.items()], now_ns)
        >>> request.feed(body)
        >>> request.finish(complete=True).body  # or a Batch for a consumer, if there is something to store
        {'accepted': 0, 'duplicates': 0, 'ignored': 1, 'invalid': 0}
        >>> request.close()
    """

    def __init__(
        self, *, verifier: Verifier, mapper: Mapper | None = None, name: str = "statsig", limits: Limits | None = None
    ) -> None:
        self.last_secret: int | None = None
        self._verifier = verifier
        self._mapper = Mapper() if mapper is None else mapper
        self._name = name
        self._limits = Limits() if limits is None else limits
        for argument, type_ in {"verifier": Verifier, "mapper": Mapper, "name": str, "limits": Limits}.items():
            check_type(argument, getattr(self, argument), type_)
        self.counts: ReceiverCounts = begin_counts(name, verifier.secret_count)  # for `Request`
        self.bodies: Bodies = Bodies(self.limits.max_in_flight_bytes, self.limits.max_large_bytes)  # for `Request`
        self._requests = 0  # begun and not yet closed
        self._lock = threading.RLock()  # entered by itself: a condition's own methods are Python, and cost each request
        self._idle = threading.Condition(self._lock)
        self._throttle = LogThrottle(_logger)

    @property
    def verifier(self) -> Verifier:
        """Checks the signatures of the requests that begin from now on."""
        return self._verifier

    @verifier.setter
    def verifier(self, verifier: Verifier) -> None:
        check_type("verifier", verifier, Verifier)
        self._verifier, self.last_secret = verifier, None
        begin_counts(self.name, verifier.secret_count)

    @property
    def mapper(self) -> Mapper:
        """Makes the records of the requests whose bodies end from now on."""
        return self._mapper

    @mapper.setter
    def mapper(self, mapper: Mapper) -> None:
        check_type("mapper", mapper, Mapper)
        self._mapper = mapper

    @property
    def name(self) -> str:
        """The receiver's id."""
        return self._name

    @property
    def limits(self) -> Limits:
        """The limits for clients that are not yet known."""
        return self._limits

    def verified(self, position: int, ahead_ms: int, now_ns: int) -> None:
        """Count a request whose signature is valid, and log if another secret than before has verified it.

        Args:
            position: The position of the secret, from 1.
            ahead_ms: The request's timestamp, less the time when it arrived, in milliseconds.
            now_ns: That time, in nanoseconds since the epoch.
        """
        counts = self.counts
        with counts.lock:
            counts.verified[position] += 1
            counts.last_verified_ns, counts.ahead_ms = now_ns, ahead_ms
        if position != self.last_secret:
            self.last_secret = position
            if self._verifier.secret_count > 1:
                message = "%s: the last webhook was verified with secret %d of the %d in signing_secrets"
                _logger.info(message, self.name, position, self._verifier.secret_count)

    def begin(self, headers: Iterable[tuple[bytes, bytes]], now_ns: int) -> "Request":
        """Begin a request, or refuse it by its headers.

        Args:
            headers: Names and values as sent, names in any case, one pair for each occurrence of a header.
            now_ns: The time now, in nanoseconds since the epoch.

        Raises:
            AnsweredError: The request is refused without its body.
            TypeError: A header is not a pair of bytes, or the time is not an integer.
        """
        check_type("headers", headers, Iterable, _HEADERS)
        check_type("now_ns", now_ns, int)
        fields: dict[bytes, list[bytes]] = {name: [] for name in _READ}
        for header in headers:
            match header:
                case (bytes() as name, bytes() as value):
                    if (found := fields.get(name.lower())) is not None:
                        found.append(value)
                case _:
                    raise TypeError(f"headers must be {_HEADERS}")
        encodings, lengths, signatures, timestamps = fields.values()
        if any(value.strip().lower() not in _NO_CODING for value in encodings):
            raise _refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "content_encoding")
        length = _content_length(lengths)
        if length is not None and length > self.limits.max_request_body_size:
            raise _refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large")
        try:
            verification = self.verifier.begin(signatures, timestamps, now_ns // 1_000_000)
        except UnauthorizedError as found:
            error = _with_both_clocks(found, timestamps, now_ns)
            # A short body may be a URL verification. A longer one is not even read.
            if length is not None and length > MAX_URL_VERIFICATION_SIZE:
                raise AnsweredError(_unauthorized(error)) from error
            # The traceback would make a reference cycle with the request.
            return Request(self, now_ns, length, error.with_traceback(None))
        return Request(self, now_ns, length, verification)

    def wait_until_idle(self, timeout: float) -> bool:
        """Wait until all requests that were begun are closed. Do so before the consumer of their batches ends.

        Args:
            timeout: The most seconds to wait.

        Returns:
            Whether all requests are closed.
        """
        with self._idle:
            return self._idle.wait_for(lambda: not self._requests, timeout)

    def count(self, requests: int) -> None:
        """Count requests that begin. For `Request`.

        Args:
            requests: The number of requests; negative for closed ones.
        """
        with self._lock:
            self._requests += requests
            if not self._requests:
                self._idle.notify_all()

    def warn(self, kind: str, message: str, *arguments: object) -> None:
        """Log a warning about a webhook that was taken, at most one of each kind in ten seconds. For `Request`.

        Args:
            kind: The kind, a word of our own.
            message: What is wrong, with places for `arguments`.
            arguments: What the message is about.
        """
        self._throttle.log(logging.WARNING, kind, f"%s: {message}", self.name, *arguments)

    def report(self, answer: Answer) -> None:
        """Count an answer, and log it: a refusal as a warning. Call this once for each request, when it is answered.

        Raises:
            TypeError: It is not an `Answer`.
        """
        check_type("answer", answer, Answer)
        counts = self.counts
        with counts.lock:
            counts.answers[answer.status, answer.reason] += 1
        journal.add_request(self._name, answer.status, answer.reason, answer.detail, answer.body)
        if answer.status is not HTTPStatus.OK:
            detail = f": {answer.detail}" if answer.detail else ""
            message = "%s: answered %d (%s)%s"
            kind = f"{answer.reason} {answer.subject}"
            self._throttle.log(logging.WARNING, kind, message, self.name, answer.status, answer.reason, detail)
        elif answer.reason == "url_verification":
            todo = f"Copy its signing secret from Statsig's console into {SECRETS_SETTING}. {THEN_RELOAD}"
            done = "Signed events are accepted."
            message = "%s: a URL verification was answered. %s"
            hint = done if self.verifier.has_secret else todo
            self._throttle.log(logging.INFO, answer.reason, message, self.name, hint)
        elif _logger.isEnabledFor(logging.DEBUG):
            items = ", ".join(f"{count} {word}" for word, count in answer.body.items())
            _logger.debug("%s: answered 200: %s", self.name, items)


class Request:
    """One request whose headers passed. Made by `Intake.begin`. Call `close` in the end, whatever happens.

    Example:
        >>> from statsig_otel.plugin import Intake, Verifier
        >>> request = Intake(verifier=Verifier(["webhook-..."])).begin([(b"content-length", b"3")], now_ns=0)
        >>> request.feed(b"abc")
        >>> request.finish(complete=True).reason
        'signature_missing'
        >>> request.close()
    """

    def __init__(
        self, intake: Intake, now_ns: int, length: int | None, signature: Verification | UnauthorizedError
    ) -> None:
        self._intake = intake
        self._now_ns = now_ns
        self._length = length
        self._signature = signature
        self._body = Body(length or 0)
        self._malformed: tuple[str, str] | None = None  # the reason and the detail; the error itself refers to the body
        self._verified: tuple[bytes, ParsedBody] | None = None
        self._mapped = _NOTHING
        self._ignored: Mapping[str, int] = {}  # items, by the name of their event
        self._began = perf_counter() if collecting.has_begun else 0.0
        self._is_open = True
        intake.count(1)

    @property
    def size(self) -> int:
        """The bytes of the body that were read."""
        return self._body.size

    @property
    def is_large(self) -> bool:
        """Whether the body is over 256 KiB: the declared size, or the part that was read."""
        return self._body.is_large()

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body: count and hash them.

        Raises:
            AnsweredError: The body is too large, or all bodies together are; or newer ones needed its memory.
            TypeError: They are a string, not bytes.
        """
        check_body(chunk)
        size = self._body.size + len(chunk)
        if isinstance(self._signature, UnauthorizedError) and size > MAX_URL_VERIFICATION_SIZE:
            raise AnsweredError(_unauthorized(self._signature))
        if size > self._intake.limits.max_request_body_size:
            raise _refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large")
        if not self._intake.bodies.add(self._body, chunk):
            if self._body.gave_way:
                raise _refuse(HTTPStatus.REQUEST_TIMEOUT, "gave_way")
            raise _refuse(HTTPStatus.SERVICE_UNAVAILABLE, "in_flight_bytes")
        if isinstance(self._signature, Verification):
            self._signature.update(chunk)

    def arrived(self) -> None:
        """The body has arrived as a whole, and gives way to no other one. Call this if `finish` has to wait."""
        self._intake.bodies.finish(self._body)

    def finish(self, *, complete: bool) -> Answer | Batch:
        """Verify, parse and map the body. It takes long for a large body, and may run in any thread.

        If `close` is called before it returns, its result has no meaning.

        Args:
            complete: Whether the body was read to its end; False if the client left before.

        Returns:
            The answer; or a batch for a consumer, after which `taken` or `refused` gives the answer.
        """
        return self.verify(complete=complete) or self.map()

    def verify(self, *, complete: bool) -> Answer | Batch | None:
        """The first half of `finish`: verify and parse the body. For who finishes several requests at once.

        Args:
            complete: As for `finish`.

        Returns:
            The result of `finish`, or None if `map` has to give it.
        """
        self.arrived()
        if self._body.gave_way:
            return refusal(HTTPStatus.REQUEST_TIMEOUT, "gave_way")
        chunks = self._body.chunks
        complete = complete and (self._length is None or self._body.size >= self._length)
        is_short = self._body.size <= MAX_URL_VERIFICATION_SIZE
        code = parse_url_verification(b"".join(chunks)) if complete and is_short else None
        if code is not None:
            return Answer(HTTPStatus.OK, {"verification_code": code}, "url_verification")
        if isinstance(self._signature, UnauthorizedError):
            return _unauthorized(self._signature)
        if not complete:
            # Before the signature is compared: a body that was cut short is not a forgery.
            return refusal(HTTPStatus.BAD_REQUEST, "truncated")
        try:
            self._intake.verified(self._signature.finish(), self._signature.ahead_ms, self._now_ns)
        except UnauthorizedError as error:
            return _unauthorized(error)
        body = b"".join(chunks)  # not before: a copy of a forged body would be memory that no limit counts
        chunks.clear()
        try:
            parsed = parse(body)
        except MalformedBodyError as error:
            self._malformed = error.reason, str(error)
            return Batch(self._intake.name, invalid=(Invalid(body, str(error), whole_body=True),))
        self._verified = body, parsed
        return None

    def map(self) -> Answer | Batch:
        """The second half of `finish`, if `verify` has returned None: map what was parsed.

        Raises:
            RuntimeError: There is nothing to map.
        """
        if self._verified is None:
            raise RuntimeError("only a body that `verify` has parsed can be mapped, and only once")
        (body, parsed), self._verified = self._verified, None
        self._mapped = self._intake.mapper.map(parsed, self._now_ns)
        if self._mapped.ignored:
            self._ignored = ignored_names(body, parsed, self._mapped)
        mapped = self._mapped
        if mapped.changes or mapped.invalid or mapped.arrivals:
            return Batch(self._intake.name, mapped.changes, mapped.invalid, mapped.arrivals)
        return self.taken(_NO_CHANGES)

    def taken(self, receipt: Receipt) -> Answer:
        """The answer after the consumer has accepted the batch.

        Raises:
            TypeError: It is not a `Receipt`.
            ValueError: It counts more or fewer changes than the batch has. Answer 500 then.
        """
        check_receipt(receipt, len(self._mapped.changes))
        if self._malformed is not None:
            return refusal(HTTPStatus.BAD_REQUEST, *self._malformed)
        mapped, counts = self._mapped, self._intake.counts
        with counts.lock:
            if receipt.accepted:
                counts.accepted += self._new_record_count(receipt)
                counts.changes += receipt.accepted
                counts.last_change_ns = self._now_ns
                journal.add_changes(self._intake.name, self._now_ns, mapped.changes)
            if receipt.duplicates:
                counts.duplicates += receipt.duplicates
            if mapped.ignored:
                counts.ignore(self._ignored)
            if mapped.invalid:
                counts.invalid += len(mapped.invalid)
            if mapped.left_out:
                counts.left_out.update(mapped.left_out)
            if mapped.in_seconds:
                counts.in_seconds += mapped.in_seconds
        if mapped.in_seconds:
            message = "config changes with a timestamp of ten digits, read as seconds, not milliseconds: %d"
            self._intake.warn("timestamp_in_seconds", message, mapped.in_seconds)
        if mapped.invalid:
            message = "config changes that no record could be made of: %d; the reason for the first: %s"
            self._intake.warn("invalid", message, len(mapped.invalid), mapped.invalid[0].reason)
        body: dict[str, object] = {
            "accepted": receipt.accepted,
            "duplicates": receipt.duplicates,
            "ignored": mapped.ignored,
            "invalid": len(mapped.invalid),
        }
        return Answer(HTTPStatus.OK, body, "accepted")

    def refused(self, error: RefusedError) -> Answer:
        """The answer after the consumer has refused the batch.

        Raises:
            TypeError: It is not a `RefusedError`.
        """
        check_type("error", error, RefusedError)
        with self._intake.counts.lock:
            self._intake.counts.refused += self._record_count()
            if error.reason == "not_kept":
                self._intake.counts.invalid += len(self._mapped.invalid)
        return refusal(
            HTTPStatus.SERVICE_UNAVAILABLE,
            error.reason,
            str(error),
            retry_after=error.retry_after,
            subject=error.subject,
        )

    def close(self) -> None:
        """Release the memory of the body."""
        size = self._body.size
        self._intake.bodies.release(self._body)
        if self._is_open:
            self._is_open = False
            if self._began:
                attributes = {"receiver": self._intake.name}
                request_duration.record(perf_counter() - self._began, attributes)
                request_body_size.record(size, attributes)
            self._intake.count(-1)

    def _record_count(self) -> int:
        return sum(map(len, map(_records, self._mapped.changes)))

    def _new_record_count(self, receipt: Receipt) -> int:
        """The records of the new changes. A receipt does not say which ones are new, so their share counts."""
        return self._record_count() * receipt.accepted // len(self._mapped.changes)


_NOTHING: Final = Mapped((), (), 0, ())
_NO_CHANGES: Final = Receipt(accepted=0)
_records: Final = attrgetter("records")


def _content_length(values: Sequence[bytes]) -> int | None:
    """The declared size. A correct HTTP server lets no other form through."""
    if not values:
        return None
    if len(set(values)) > 1 or not _DIGITS.fullmatch(values[0]):
        raise _refuse(HTTPStatus.BAD_REQUEST, "content_length")
    return int(values[0])
