"""How many streams live in each process of a server."""

from collections.abc import MutableSequence


class Census:
    """The streams of all processes, one number each, in memory that they share; a process changes its own alone."""

    def __init__(self, counts: MutableSequence[int] | None = None, own: int = 0) -> None:
        self._counts = [0] if counts is None else counts
        self._own = own

    @property
    def own(self) -> int:
        """Streams of this process."""
        return self._counts[self._own]

    @property
    def total(self) -> int:
        """Streams of all processes."""
        return sum(self._counts)

    def enter(self, limit: int) -> bool:
        """Counts a stream more, unless there would be more than `limit` in all.

        Counted first and looked at afterwards: two processes that enter at the same moment may both be sent away from
        the last place, but never both get it.
        """
        self._counts[self._own] += 1
        if self.total <= limit:
            return True
        self.leave()
        return False

    def leave(self) -> None:
        """Counts a stream less."""
        self._counts[self._own] -= 1
