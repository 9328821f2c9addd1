"""How this sandbox process was asked to run: command line first, then the environment, then defaults."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """`port`, `apns_port`, `smtp_port`: 0 takes a free one (the line printed at start names it).

    `hooks_url`: where receipts go; no trailing slash. `public_url`: how clients reach the HTTP port, empty for
    the bound address. `hold`: entries that the inbox keeps; `hold_bytes`: what their bodies may weigh
    together, the oldest bodies go first.
    """

    host: str = "127.0.0.1"
    port: int = 8100
    apns_port: int = 8197
    smtp_port: int = 8125
    tls_dir: Path = Path(".run/sandbox")
    hooks_url: str = "http://127.0.0.1:8000"
    public_url: str = ""
    latency_ms: float = 0.0
    faults: bool = True
    receipts: bool = True
    apns_max_streams: int = 1000
    strict_tokens: bool = False
    hold: int = 200_000
    hold_bytes: int = 512 * 1024 * 1024


def read_options(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Options:
    """Exits with a usage text when an argument is not understood, as argparse does."""

    usual = Options()

    def setting(name: str) -> str:
        return environment.get(f"SANDBOX_{name.upper()}", "") or str(getattr(usual, name))

    parser = argparse.ArgumentParser(prog="python -m notifier.sandbox", description=__doc__)
    parser.add_argument("--host", default=setting("host"))
    parser.add_argument("--port", type=int, default=setting("port"), help="HTTP: FCM, Twilio, SendGrid, the page")
    parser.add_argument("--apns-port", type=int, default=setting("apns_port"), help="HTTP/2 over TLS")
    parser.add_argument("--smtp-port", type=int, default=setting("smtp_port"))
    parser.add_argument("--tls-dir", type=Path, default=setting("tls_dir"), help="keys, made once")
    parser.add_argument("--hooks-url", default=setting("hooks_url"), help="receipts go here")
    parser.add_argument("--public-url", default=setting("public_url"), help="how clients reach --port")
    parser.add_argument("--latency-ms", type=float, default=setting("latency_ms"), help="added to every answer")
    parser.add_argument("--no-faults", action="store_true", default=bool(environment.get("SANDBOX_NO_FAULTS")))
    parser.add_argument(
        "--bare", action="store_true", default=bool(environment.get("SANDBOX_BARE")), help="no receipts"
    )
    parser.add_argument("--apns-max-streams", type=int, default=setting("apns_max_streams"))
    parser.add_argument(
        "--strict-tokens",
        action="store_true",
        default=bool(environment.get("SANDBOX_STRICT_TOKENS")),
        help="one new APNs provider token in 20 minutes for all connections together, not for each",
    )
    parser.add_argument("--hold", type=int, default=setting("hold"), help="entries kept in the inbox")
    parser.add_argument("--hold-mb", type=int, default=environment.get("SANDBOX_HOLD_MB") or 512, help="bodies")
    given = parser.parse_args(arguments)
    return Options(
        host=given.host,
        port=given.port,
        apns_port=given.apns_port,
        smtp_port=given.smtp_port,
        tls_dir=given.tls_dir,
        hooks_url=given.hooks_url.rstrip("/"),
        public_url=given.public_url.rstrip("/"),
        latency_ms=given.latency_ms,
        faults=not given.no_faults,
        receipts=not given.bare,
        apns_max_streams=given.apns_max_streams,
        strict_tokens=given.strict_tokens,
        hold=given.hold,
        hold_bytes=given.hold_mb * 1024 * 1024,
    )
