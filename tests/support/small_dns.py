"""A name server that answers every question for IPv4 addresses with those that a test sets."""

from __future__ import annotations

import socket
import struct
import threading


class SmallDns:
    """The server.

    Attributes:
        addresses: what every name stands for.
        port: where it listens on 127.0.0.1, over UDP.
        questions: how many it was asked for IPv4 addresses.
    """

    def __init__(self, *addresses):
        self.addresses = list(addresses)
        self.questions = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def close(self):
        # Closing alone would not wake the thread.
        self.addresses = None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wake:
            wake.sendto(b"", ("127.0.0.1", self.port))

    def _run(self):
        with self._socket:
            while True:
                packet, peer = self._socket.recvfrom(4096)
                if self.addresses is None:
                    return
                self._socket.sendto(self._answer(packet), peer)

    def _answer(self, packet):
        end = packet.index(b"\0", 12) + 5  # the name, its type and class
        question = packet[12:end]
        (kind,) = struct.unpack("!H", question[-4:-2])
        found = self.addresses if kind == 1 else []
        self.questions += kind == 1
        records = b"".join(
            b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 0, 4) + socket.inet_aton(one) for one in found
        )
        header = packet[:2] + struct.pack("!HHHHH", 0x8580, 1, len(found), 0, 0)
        return header + question + records
