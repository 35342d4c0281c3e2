"""The smallest server that can carry swap: one connection, one process, every safeguard. Proves the rig, not the product.

reference_server.py MEMORY MIB SOCKET
"""

import ctypes
import mmap
import os
import socket
import struct
import sys

PR_SET_IO_FLUSHER = 57
MCL_CURRENT_FUTURE = 3
EXPORT_NAME, GO, ACK, INFO = 1, 7, 1, 3
READ, WRITE, DISCONNECT = 0, 1, 2


def receive(client: socket.socket, view: memoryview) -> memoryview:
    got = 0
    while got < len(view):
        count = client.recv_into(view[got:])
        if not count:
            raise SystemExit(0)
        got += count
    return view


def main() -> None:
    path, size, address = sys.argv[1], int(sys.argv[2]) << 20, sys.argv[3]
    libc = ctypes.CDLL(None, use_errno=True)
    for result in (
        libc.prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0),
        libc.mlockall(MCL_CURRENT_FUTURE),
    ):
        if result:
            raise OSError(ctypes.get_errno(), "safeguard")
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")
    descriptor = os.open(path, os.O_RDWR)
    memory = memoryview(
        mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    )
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    client, _ = listener.accept()
    serve(client, memory, size)


def serve(client: socket.socket, memory: memoryview, size: int) -> None:
    small = memoryview(bytearray(4096))
    client.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
    receive(client, small[:4])
    while True:
        _, option, length = struct.unpack(">8sII", receive(client, small[:16]))
        receive(client, small[:length])
        if option == EXPORT_NAME:
            client.sendall(struct.pack(">QH", size, 1))
            break
        if option != GO:
            client.sendall(struct.pack(">QIII", 0x3E889045565A9, option, 0x80000001, 0))
            continue
        client.sendall(struct.pack(">QIIIHQH", 0x3E889045565A9, option, INFO, 12, 0, size, 1))
        client.sendall(struct.pack(">QIII", 0x3E889045565A9, option, ACK, 0))
        break
    while True:
        _, _, kind, cookie, offset, length = struct.unpack(">IHHQQI", receive(client, small[:28]))
        if kind == DISCONNECT:
            return
        if kind == WRITE:
            receive(client, memory[offset : offset + length])
        client.sendall(struct.pack(">IIQ", 0x67446698, 0, cookie))
        if kind == READ:
            client.sendall(memory[offset : offset + length])


main()
