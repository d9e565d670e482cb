"""Who may call the local services: programs of this machine that mean them, and no web page.

A page in a browser can send requests to any port of the machine that shows it, and their answer need not be readable to
do harm. Such a request carries Origin, Sec-Fetch-* or at least a browser's User-Agent; a page whose name an attacker's
DNS resolves to the loopback address (DNS rebinding) carries that name in Host.
"""

import http.server
from collections.abc import Iterable

FORBIDDEN = 403
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def refusal(headers: Iterable[tuple[str, str]], port: int) -> str:
    """Why a request to the service on this port is refused; "" when it comes from a program that means the service."""
    hosts = []
    for name, value in headers:
        name, value = name.lower(), value.strip().lower()
        if name == "origin" or name.startswith("sec-fetch-") or (name == "user-agent" and value.startswith("mozilla/")):
            return f"the local AWS answers no browser (header {name})"
        if name == "host":
            hosts.append(value)
    host, _, given = hosts[0].rpartition(":") if len(hosts) == 1 else ("", "", "")
    # S3 clients may put the bucket before localhost, all names under which are loopback (RFC 6761, 6.3).
    if given != str(port) or not (host in _LOOPBACK or host.endswith(".localhost")):
        return f"the local AWS is http://127.0.0.1:{port} or http://localhost:{port}, and answers to no other name"
    return ""


class GuardedRequest(http.server.BaseHTTPRequestHandler):
    """Answers 403, on every path and with every method, to what `refusal` refuses."""

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        why = refusal(self.headers.items(), self.connection.getsockname()[1])
        if why:
            self.close_connection = True  # its body was not read
            self.send_error(FORBIDDEN, why)
        return not why
