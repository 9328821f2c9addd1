"""The SMTP dialogue of one connection: lines in, replies out, as fast as they come (PIPELINING, RFC 2920)."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Coroutine
from typing import Any

from notifier.sandbox.email_smtp import DEFAULT_ACCOUNT, SIZE_LIMIT_BYTES, Smtp, Transaction
from notifier.sandbox.faults import GARBAGE_BODY, HUGE_BODY_BYTES, Mode
from notifier.sandbox.server import reset

_LINE_LIMIT_BYTES = 4096  # an AUTH line may be far longer than the 512 of RFC 5321
_IDLE_S = 300.0
_DRIP_S = 0.25
_GREETING = b"220 mx.sandbox.invalid ESMTP sandbox\r\n"
_END = b"\r\n.\r\n"
_EXTENSIONS = ("PIPELINING", f"SIZE {SIZE_LIMIT_BYTES}", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN")


class Session(asyncio.Protocol):
    """`waiting` stops the reading of commands while a reply is held back (latency, a slow mailbox, TLS)."""

    def __init__(self, smtp: Smtp, sessions: set[Session]) -> None:
        self._smtp = smtp
        self._sessions = sessions
        self._latency_s = smtp.parts.options.latency_ms / 1000
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._scanned = 0
        self._replies: list[bytes] = []
        self._waiting = False
        self._in_data = False
        self._discarded = 0
        self._is_tls = False
        self._account = DEFAULT_ACCOUNT
        self._is_known = False
        self._greeted = False
        self._login: Callable[[bytes], None] | None = None  # takes the next line of an AUTH dialogue
        self._transaction: Transaction | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.get_running_loop().call_later(_IDLE_S, self.close)
        self._last_seen = asyncio.get_running_loop().time()

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        if self._is_tls:
            return
        self._sessions.add(self)
        self._write(_GREETING)

    def connection_lost(self, error: Exception | None) -> None:
        self._sessions.discard(self)
        self._transport = None
        self._idle.cancel()
        for task in self._tasks:
            task.cancel()

    def close(self) -> None:
        """Ends a connection that was idle too long; one that was not is looked at again."""
        loop = asyncio.get_running_loop()
        left = self._last_seen + _IDLE_S - loop.time()
        if left > 0:
            self._idle = loop.call_later(left, self.close)
        elif self._transport is not None:
            self._write(b"421 4.4.2 Idle too long\r\n")
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            reset(self._transport)

    def _write(self, reply: bytes) -> None:
        if self._transport is not None:
            self._transport.write(reply)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._last_seen = asyncio.get_running_loop().time()
        if not self._waiting:
            self._proceed()

    def _proceed(self) -> None:
        """Everything that is complete in the buffer; the replies leave in one write."""
        while not self._waiting and self._transport is not None:
            if not (self._take_data() if self._in_data else self._take_line()):
                break
        if self._replies:
            self._write(b"".join(self._replies))
            self._replies.clear()

    def _take_line(self) -> bool:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > _LINE_LIMIT_BYTES:
                self._replies.append(b"500 5.5.6 Line too long\r\n")
                self._buffer.clear()
            return False
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        if self._login is not None:
            self._login(line)
        else:
            self._command(line)
        return True

    def _reply(self, text: str) -> None:
        self._replies.append(text.encode("utf-8", "replace") + b"\r\n")

    # Commands

    def _command(self, line: bytes) -> None:
        verb, _, rest = line.partition(b" ")
        try:
            argument = rest.decode().strip()
        except UnicodeDecodeError:
            return self._reply("501 5.5.2 Not UTF-8")
        handler = _COMMANDS.get(verb.upper())
        if handler is None:
            return self._reply("500 5.5.1 Command not recognized")
        handler(self, argument)

    def _ehlo(self, argument: str) -> None:
        if not argument:
            return self._reply("501 5.5.4 EHLO needs a name")
        self._greeted, self._transaction = True, None
        lines = ["mx.sandbox.invalid", *_EXTENSIONS, "AUTH PLAIN LOGIN"]
        if not self._is_tls:
            lines.append("STARTTLS")
        for line in lines[:-1]:
            self._reply(f"250-{line}")
        self._reply(f"250 {lines[-1]}")

    def _helo(self, argument: str) -> None:
        self._greeted, self._transaction = True, None
        self._reply("250 mx.sandbox.invalid")

    def _mail(self, argument: str) -> None:
        if not self._greeted:
            return self._reply("503 5.5.1 Say EHLO first")
        if self._transaction is not None:
            return self._reply("503 5.5.1 Nested MAIL command")
        if argument[:5].upper() != "FROM:":
            return self._reply("501 5.5.4 Syntax: MAIL FROM:<address>")
        self._transaction, reply = self._smtp.mail_from(argument[5:].lstrip())
        fault = self._transaction.fault if self._transaction else None
        if fault is not None and fault.mode is Mode.RESET_BEFORE:
            return self.abort()
        self._reply(reply)

    def _rcpt(self, argument: str) -> None:
        if self._transaction is None:
            return self._reply("503 5.5.1 Need MAIL first")
        if argument[:3].upper() != "TO:":
            return self._reply("501 5.5.4 Syntax: RCPT TO:<address>")
        self._reply(self._smtp.rcpt_to(self._transaction, argument[3:].lstrip()))

    def _data(self, argument: str) -> None:
        if self._transaction is None:
            return self._reply("503 5.5.1 Need MAIL first")
        if not self._transaction.recipients:
            return self._reply("554 5.5.1 No valid recipients")
        self._in_data, self._scanned, self._discarded = True, 0, 0
        self._reply("354 End data with <CR><LF>.<CR><LF>")

    def _rset(self, argument: str) -> None:
        self._transaction = None
        self._reply("250 2.0.0 Ok")

    def _noop(self, argument: str) -> None:
        self._reply("250 2.0.0 Ok")

    def _vrfy(self, argument: str) -> None:
        self._reply("252 2.5.2 Cannot verify, send some mail")

    def _quit(self, argument: str) -> None:
        self._reply("221 2.0.0 Bye")
        self._write(b"".join(self._replies))
        self._replies.clear()
        if self._transport is not None:
            self._transport.close()
        self._waiting = True

    def _starttls(self, argument: str) -> None:
        if self._is_tls:
            return self._reply("503 5.5.1 Already using TLS")
        self._reply("220 2.0.0 Ready to start TLS")
        self._write(b"".join(self._replies))
        self._replies.clear()
        # What was pipelined behind STARTTLS came over the plain connection: never to be read as a command.
        self._buffer.clear()
        self._waiting = True
        self._spawn(self._upgrade())

    async def _upgrade(self) -> None:
        loop = asyncio.get_running_loop()
        transport = self._transport
        if transport is None:
            return
        self._is_tls = True
        self._greeted, self._is_known, self._transaction = False, False, None
        try:
            tls = await loop.start_tls(transport, self, self._smtp.parts.keys.tls, server_side=True)
        except (OSError, asyncio.CancelledError):
            transport.abort()
            return
        self._transport = tls
        self._waiting = False
        self._proceed()

    # AUTH

    def _auth(self, argument: str) -> None:
        if not self._greeted or self._is_known or self._transaction is not None:
            return self._reply("503 5.5.1 AUTH not allowed now")
        mechanism, _, initial = argument.partition(" ")
        if mechanism.upper() == "PLAIN":
            if initial:
                self._settle(*self._smtp.login(initial))
            else:
                self._login = self._plain
                self._reply("334 ")
        elif mechanism.upper() == "LOGIN":
            self._login = self._login_user
            if initial:
                self._login_user(initial.encode())
            else:
                self._reply("334 VXNlcm5hbWU6")
        else:
            self._reply("504 5.5.4 Unrecognized authentication type")

    def _plain(self, line: bytes) -> None:
        self._settle(*self._smtp.login(line.decode("ascii", "replace")))

    def _login_user(self, line: bytes) -> None:
        user = _decoded(line)

        def password(line: bytes) -> None:
            self._settle(*self._smtp.checked(user, _decoded(line)))

        self._login = password
        self._reply("334 UGFzc3dvcmQ6")

    def _settle(self, user: str, reply: str) -> None:
        self._login = None
        if user:
            self._account, self._is_known = user, True
        self._reply(reply)

    # DATA

    def _take_data(self) -> bool:
        if not self._discarded and self._buffer.startswith(b".\r\n"):
            end, mail_end = 3, 0
        else:
            found = self._buffer.find(_END, max(0, self._scanned - len(_END)))
            if found < 0:
                self._scanned = len(self._buffer)
                if self._scanned > SIZE_LIMIT_BYTES:
                    self._discarded += self._scanned - len(_END)
                    del self._buffer[: -len(_END)]
                    self._scanned = 0
                return False
            end, mail_end = found + len(_END), found + 2
        mail = bytes(self._buffer[:mail_end])
        del self._buffer[:end]
        is_too_big, transaction = bool(self._discarded) or len(mail) > SIZE_LIMIT_BYTES, self._transaction
        self._in_data, self._transaction, self._scanned, self._discarded = False, None, 0, 0
        if is_too_big or transaction is None:
            self._reply("552 5.3.4 Message size exceeds fixed limit")
            return True
        if b"\r\n.." in mail or mail.startswith(b".."):
            mail = mail[1:] if mail.startswith(b"..") else mail
            mail = mail.replace(b"\r\n..", b"\r\n.")
        self._finish(transaction, mail)
        return True

    def _finish(self, transaction: Transaction, mail: bytes) -> None:
        fault = transaction.fault
        if fault is None and not self._latency_s:
            reply, delay_s = self._smtp.accept(transaction, mail, self._account)
            if not delay_s:
                return self._reply(reply)
            return self._hold(delay_s, reply.encode() + b"\r\n")
        self._waiting = True
        self._spawn(self._strike(transaction, mail))

    def _hold(self, seconds: float, reply: bytes) -> None:
        self._waiting = True
        asyncio.get_running_loop().call_later(seconds, self._release, reply)

    def _release(self, reply: bytes) -> None:
        self._waiting = False
        self._replies.append(reply)
        self._proceed()

    async def _strike(self, transaction: Transaction, mail: bytes) -> None:
        fault = transaction.fault
        await asyncio.sleep(self._latency_s + (fault.latency_ms / 1000 if fault else 0.0))
        if fault is not None and fault.mode is Mode.HANG:
            await self._smtp.parts.faults.lifted.wait()
            return self.abort()
        reply, delay_s = self._smtp.accept(transaction, mail, self._account)
        await asyncio.sleep(delay_s)
        line = reply.encode("utf-8", "replace") + b"\r\n"
        if fault is not None and fault.mode is Mode.RESET_AFTER:
            return self.abort()
        if fault is not None and fault.mode is Mode.GARBAGE:
            line = GARBAGE_BODY + b"\r\n"
        elif fault is not None and fault.mode is Mode.HUGE:
            line = b"250-" + b"x" * HUGE_BODY_BYTES + b"\r\n"
        elif fault is not None and fault.mode is Mode.SLOW:
            for position in range(len(line) - 1):
                self._write(line[position : position + 1])
                await asyncio.sleep(_DRIP_S)
            line = line[-1:]
        self._release(line)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _decoded(line: bytes) -> str:
    try:
        return base64.b64decode(line, validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


_COMMANDS: dict[bytes, Callable[[Session, str], None]] = {
    b"EHLO": Session._ehlo,
    b"HELO": Session._helo,
    b"MAIL": Session._mail,
    b"RCPT": Session._rcpt,
    b"DATA": Session._data,
    b"RSET": Session._rset,
    b"NOOP": Session._noop,
    b"VRFY": Session._vrfy,
    b"QUIT": Session._quit,
    b"STARTTLS": Session._starttls,
    b"AUTH": Session._auth,
}
