"""The one exception that reaches users as a sentence instead of a traceback."""


class ASRError(ValueError):
    """Bad input or a bad setting; the message is one sentence that names the thing, what was found and the remedy."""
