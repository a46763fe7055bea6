"""Who may use a server: whoever has the token, if there is one, and no page of a strange site."""

import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from aiohttp import web

from asr.server.refusal import Refusal

OPEN_PATHS = frozenset(("/healthz", "/docs"))  # wanted by load balancers and people; they tell nothing of use
BEARER = "bearer."  # what the subprotocol of a browser's WebSocket begins with, before the token


class Access:
    """Decides on requests by their headers."""

    def __init__(self, token: str | None = None, origins: Iterable[str] = ()) -> None:
        self._token = token
        self._origins = {origin.rstrip("/").lower() for origin in origins}

    def check(self, request: web.Request, *, is_public: bool) -> None:
        """Refusal where the request may not be: of a strange page, or without the token where it is not public."""
        origin = request.headers.get("Origin")
        if origin is not None and not self._is_own(origin.lower(), request.host.lower()):
            raise Refusal("forbidden", f"pages of {origin} may not use this server; allow them with --allow-origin")
        if self._token and not is_public and not self._has_token(request):
            raise Refusal("unauthorised", "this server wants its token; send it as Authorization: Bearer TOKEN")

    def _is_own(self, origin: str, host: str) -> bool:
        """Whether a page came from here.

        A name that anybody could point at this machine (DNS rebinding) does not count, unless it was allowed.
        """
        return origin in self._origins or (urlsplit(origin).netloc == host and _is_unforgeable(host))

    def _has_token(self, request: web.Request) -> bool:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        offered = [given] if scheme.lower() == "bearer" else []
        for protocol in request.headers.get("Sec-WebSocket-Protocol", "").split(","):
            if protocol.strip().startswith(BEARER):
                offered.append(protocol.strip().removeprefix(BEARER))
        wanted = (self._token or "").encode()
        return any(hmac.compare_digest(candidate.strip().encode(), wanted) for candidate in offered)


def _is_unforgeable(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost"
    return True
