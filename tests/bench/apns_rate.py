"""How many pushes one process sends to APNs, and what each costs: `python -m tests.bench.apns_rate`.

The server runs in a process of its own (it costs about as much per request as the client, so that with two cores
the rate is the slower side's: compare the CPU column). Payloads go through the whole adapter, TLS and HTTP/2.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import uvloop
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from notifier.message import Address, Channel, Lane, Message, Mode, Platform, PushContent
from notifier.outcome import Kind
from notifier.providers.apns import Apns
from notifier.providers.base import Surroundings
from tests.providers.apns_server import ApnsServer, Received, accept, make_authority


async def serve(directory: Path, latency_ms: float) -> None:
    def later(request: Received) -> None:
        asyncio.get_running_loop().call_later(latency_ms / 1000, request.answer)

    tls, _ = make_authority(directory)
    async with ApnsServer(tls, respond=later if latency_ms else accept, keeps=False) as server:
        print(server.port, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def message_of(size: int) -> Message:
    delivery_id = uuid.uuid4()
    return Message(
        delivery_id=delivery_id,
        claim_no=1,
        channel=Channel.PUSH,
        lane=Lane.BULK,
        mode=Mode.LIVE,
        address=Address(Channel.PUSH, "5a0db0c50200" + delivery_id.hex + "0" * 20, platform=Platform.IOS),
        content=PushContent("Your order", "x" * size),
        expires_at=time.time() + 600,
        collapse_id=delivery_id.hex,
    )


async def measure(provider: Apns, *, concurrency: int, size: int, seconds: float) -> tuple[float, float]:
    """Sends per second, and microseconds of this process's CPU time per send."""
    done, ends_at = 0, time.perf_counter() + seconds

    async def send() -> None:
        nonlocal done
        while time.perf_counter() < ends_at:
            [outcome] = await provider.send([message_of(size)])
            assert outcome.kind is Kind.ACCEPTED, outcome
            done += 1

    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(send() for _ in range(concurrency)))
    return done / (time.perf_counter() - started), (time.process_time() - cpu) / done * 1e6


async def bench(directory: Path, port: int, seconds: float) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    settings = Apns.Settings(
        key=key.decode(),
        key_id="KEYID",
        team_id="TEAMID",
        topic="com.example.shop",
        base_url=f"https://127.0.0.1:{port}",
        ca_file=str(directory / "ca.pem"),
    )
    provider = Apns(settings, Surroundings(carrier=None))
    await measure(provider, concurrency=50, size=20, seconds=min(1.0, seconds))
    print(f"{'body':>6} {'at once':>8} {'sends/s':>8} {'CPU us/send':>12}")
    for size in (20, 3_700):
        for concurrency in (1, 50, 500):
            rate, cpu = await measure(provider, concurrency=concurrency, size=size, seconds=seconds)
            print(f"{size:>6} {concurrency:>8} {rate:>8.0f} {cpu:>12.0f}")
    await provider.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="per line")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="before each answer")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve(options.serve, options.latency_ms))
        return
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "tests.bench.apns_rate", "--serve", name, "--latency-ms"]
        with subprocess.Popen(
            [*command, str(options.latency_ms)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdin and server.stdout
            uvloop.run(bench(Path(name), int(server.stdout.readline()), options.seconds))
            server.stdin.close()


if __name__ == "__main__":
    main()
