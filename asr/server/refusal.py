"""What a server refuses, and how it says so in each protocol."""

from dataclasses import dataclass

from asr.errors import ASRError


@dataclass(frozen=True)
class Kind:
    """How one kind of refusal is told: the code that closes a WebSocket (RFC 6455), and the status of HTTP."""

    close: int
    status: int


KINDS = {
    "bad_message": Kind(1008, 400),
    "bad_setting": Kind(1008, 400),
    "bad_audio": Kind(1007, 400),
    "unauthorised": Kind(1008, 401),
    "forbidden": Kind(1008, 403),
    "too_large": Kind(1009, 413),
    "too_long": Kind(1008, 413),
    "idle": Kind(1008, 408),
    "slow_reader": Kind(1008, 408),
    "overloaded": Kind(1013, 429),
    "shutdown": Kind(1012, 503),
    "failure": Kind(1011, 500),
}


class Refusal(ASRError):
    """The end of one client's request: `code` is a key of KINDS, the message one sentence for its user."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param  # the field of a form at fault

    @property
    def kind(self) -> Kind:
        """How it is told."""
        return KINDS[self.code]
