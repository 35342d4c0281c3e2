"""Run under the system's Python with libnbd's binding: URI, and the file that the server maps."""

import errno
import sys

import nbd

BLOCK = 4096


def flip(offset, mask):
    with open(sys.argv[2], "r+b", buffering=0) as memory:
        memory.seek(offset)
        (byte,) = memory.read(1)
        memory.seek(offset)
        memory.write(bytes([byte ^ mask]))


def fails(call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as error:
        assert error.errno == "EIO" and error.errnum == errno.EIO, error.string
    else:
        raise AssertionError(f"{call.__name__} was done")


h = nbd.NBD()
h.set_uri_allow_local_file(True)
h.connect_uri(sys.argv[1])
data = bytes(range(256)) * 16 * 64
h.pwrite(data, 0)
assert h.pread(len(data), 0) == data

flip(9 * BLOCK + 1234, 0x20)
fails(h.pread, BLOCK, 9 * BLOCK)
fails(h.pread, 10, 9 * BLOCK)
fails(h.pread, len(data), 0)
fails(h.pwrite, b"part", 9 * BLOCK + 1000)
fails(h.zero, 100, 9 * BLOCK + 1234)
assert h.pread(9 * BLOCK, 0) == data[: 9 * BLOCK]
assert h.pread(54 * BLOCK, 10 * BLOCK) == data[10 * BLOCK :]
h.pwrite(b"part", 8 * BLOCK + 1000)
assert h.pread(4, 8 * BLOCK + 1000) == b"part"

h.pwrite(b"n" * BLOCK, 9 * BLOCK)
assert h.pread(BLOCK, 9 * BLOCK) == b"n" * BLOCK
flip(9 * BLOCK, 1)
h.zero(BLOCK, 9 * BLOCK)
assert h.pread(BLOCK, 9 * BLOCK) == bytes(BLOCK)
h.shutdown()
print("all promises hold")
