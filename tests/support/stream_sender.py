"""A program that sends the test pattern to an address in real time, until it is ended.

    python stream_sender.py ADDRESS FORMAT FIRST_NUMBER RATE

It prints a line when it begins to send, and waits for the next receiver when one has gone. With FORMAT
`mpegts` and an address that ends in `?listen`, it is the server.
"""

from __future__ import annotations

import sys
import time

import av

from tests.support.streams import add_stream, encode_one

SIZE_YX = 96, 160


def main() -> None:
    address, form, first, rate = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    number = first
    options = {"rtsp_transport": "tcp"} if form == "rtsp" else {"flush_packets": "1"}
    while True:
        try:
            with av.open(address, "w", format=form, options=options) as container:
                stream = add_stream(container, SIZE_YX)
                print("sending", flush=True)  # noqa: T201 - what the test waits for
                due = time.monotonic()
                while True:
                    container.mux(encode_one(stream, number, SIZE_YX))
                    number += 1
                    due += 1 / rate
                    time.sleep(max(0.0, due - time.monotonic()))
        except OSError:  # noqa: PERF203 - once a connection
            time.sleep(0.02)


if __name__ == "__main__":
    main()
