"""A small RTSP server: what a sender records into it is played to all who ask, over their TCP connections."""

from __future__ import annotations

import re
import socket
import threading

from tests.support.streams import Server, read_head


class RtspRelay(Server):
    """Takes one sender at a time (ANNOUNCE, RECORD) and any number of players (DESCRIBE, PLAY)."""

    def __init__(self) -> None:
        self._description: bytes | None = None
        self._players: list[socket.socket] = []
        self._lock = threading.Lock()
        super().__init__(self._talk)

    @property
    def described(self) -> bool:
        """Whether a sender has begun."""
        return self._description is not None

    def _talk(self, connection: socket.socket, count: int) -> None:
        while head := read_head(connection):
            method = head.split(" ", 1)[0]
            body = self._body(connection, head)
            if method == "ANNOUNCE":
                self._description = body
            if method == "DESCRIBE" and self._description is None:
                self._reply(connection, head, status="404 Not Found")
                continue
            self._reply(connection, head, body=(self._description or b"") if method == "DESCRIBE" else b"")
            if method == "RECORD":
                self._record(connection)
                return
            if method == "PLAY":
                with self._lock:
                    self._players.append(connection)
        with self._lock:
            self._players = [each for each in self._players if each is not connection]

    def _body(self, connection: socket.socket, head: str) -> bytes:
        found = re.search(r"Content-Length: *(\d+)", head, re.IGNORECASE)
        return _exactly(connection, int(found[1])) if found else b""

    def _reply(
        self, connection: socket.socket, head: str, *, body: bytes = b"", status: str = "200 OK"
    ) -> None:
        sequence = re.search(r"CSeq: *(\d+)", head, re.IGNORECASE)
        lines = [f"RTSP/1.0 {status}", f"CSeq: {sequence[1] if sequence else 0}", "Session: 1;timeout=60"]
        lines.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, ANNOUNCE, RECORD, TEARDOWN")
        if transport := re.search(r"Transport: *([^\r\n]+)", head):
            lines.append(f"Transport: {transport[1].replace(';mode=record', '')}")
        if body:
            lines.append("Content-Type: application/sdp")
        lines.append(f"Content-Length: {len(body)}")
        with self._lock:
            connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    def _record(self, connection: socket.socket) -> None:
        """Pass a sender's packets on until it ends, then close the players' connections."""
        try:
            while True:
                packet = _exactly(connection, 4)
                if packet[:1] != b"$":
                    break
                packet += _exactly(connection, int.from_bytes(packet[2:], "big"))
                with self._lock:
                    for player in list(self._players):
                        self._send(player, packet)
        except EOFError:
            pass
        with self._lock:
            self._description = None
            for player in self._players:
                player.shutdown(socket.SHUT_RDWR)
            self._players = []

    def _send(self, player: socket.socket, packet: bytes) -> None:
        try:
            player.sendall(packet)
        except OSError:
            self._players.remove(player)


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return data
