"""Reads outcomes: whether one may be about the data, whether anything was taken, and which words the backend used."""

import sys
from typing import Final

from statsig_otel.exporters.exporter import Blocked, Delivered, Outcome, PartiallyRejected, RetryLater
from statsig_otel.exporters.queue.records import Records

_MOST_WORDINGS: Final = 10
"""The most wordings of refusals that are told apart. If there are more, the kinds of answers are."""

_MOST_TEXTS: Final = 1000
"""If more records failed, the number of texts of the backend that are kept; of any others only the kind is."""

_LONGEST_KIND: Final = 200
"""The most characters that are kept of a kind."""


class SeenAnswers:
    """What a backend said of the records that it did not take, in one outage."""

    def __init__(self) -> None:
        self._seen: set[str] = set()  # how it refused records alone
        self._texts: set[str] = set()

    def is_new(self, reason: str) -> bool:
        """Whether no record was refused like this; it is remembered."""
        words = words_of(reason)
        answer = words if len(self._seen) < _MOST_WORDINGS else kind_of(words)
        is_new = self._seen.isdisjoint([words, answer]) and len(self._seen) < 2 * _MOST_WORDINGS
        if is_new:
            self._seen.add(answer)
        return is_new

    def clear(self) -> None:
        """The outage is over."""
        self._seen.clear()
        self._texts.clear()

    def kept(self, reason: str, failed: int) -> str:
        """The part of a reason that is kept while `failed` records have failed: it may differ for each of them."""
        text = sys.intern(str(reason))  # often one string for all
        if len(self._texts) < _MOST_TEXTS:
            self._texts.add(text)
        if failed <= _MOST_TEXTS or text in self._texts:
            return text
        return sys.intern(kind_of(text)[:_LONGEST_KIND])


def kind_of(reason: str) -> str:
    """A reason without the backend's own words."""
    return reason.partition(": ")[0]


def words_of(reason: str) -> str:
    """A reason without those of the backend's words that may differ each time: numbers, times and ids have a digit."""
    kind, colon, said = reason.partition(": ")
    words = " ".join(word for word in (said or kind).split() if not any(map(str.isdigit, word)))
    return sys.intern(f"{kind}{colon}{words}" if colon else words)


def is_answer(outcome: Outcome) -> bool:
    """Whether an outcome may be about the data, rather than about the backend, the way to it or the moment."""
    return outcome.may_be_data if isinstance(outcome, RetryLater) else not isinstance(outcome, Blocked)


def is_taken(part: Records, outcome: Outcome) -> bool:
    """Whether the backend has taken something: a partial success can refuse all."""
    return isinstance(outcome, Delivered) or (isinstance(outcome, PartiallyRejected) and outcome.count < len(part))
