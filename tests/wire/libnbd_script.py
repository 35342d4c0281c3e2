"""Run under the system's Python with libnbd's binding: every command and flag against one URI."""

import sys

import nbd

KIB, MIB = 1 << 10, 1 << 20


def connect(**options):
    handle = nbd.NBD()
    handle.add_meta_context("base:allocation")
    for name, value in options.items():
        getattr(handle, name)(value)
    handle.set_uri_allow_local_file(True)
    handle.connect_uri(sys.argv[1])
    return handle


def refused(expected, call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as error:
        assert error.errno in expected, (error.errno, error.string)
    else:
        raise AssertionError(f"{call.__name__}{arguments} was not refused")


def extents(handle, length, offset, flags=0):
    found = []
    handle.block_status(length, offset, lambda context, start, entries, error: found.append((context, start, entries)), flags)
    ((context, start, entries),) = found
    assert context == "base:allocation" and start == offset
    return list(zip(entries[::2], entries[1::2], strict=True))


h = connect()
assert h.get_structured_replies_negotiated()
assert h.get_protocol() == "newstyle-fixed"
size = h.get_size()
assert h.can_meta_context("base:allocation")

h.zero(size, 0)
h.pwrite(b"fua" * 1000, 5001, nbd.CMD_FLAG_FUA)
assert h.pread(3000, 5001) == b"fua" * 1000
h.flush()

chunks = []
h.pwrite(b"s" * MIB, 4 * MIB)
data = h.pread_structured(MIB + 100, 4 * MIB, lambda part, offset, status, error: chunks.append((offset, len(part), status)))
assert data == b"s" * MIB + bytes(100)
assert sum(length for _, length, _ in chunks) >= MIB
chunks.clear()
h.pread_structured(2 * MIB, 4 * MIB, lambda part, offset, status, error: chunks.append((offset, len(part), status)), nbd.CMD_FLAG_DF)
assert chunks == [(4 * MIB, 2 * MIB, nbd.READ_DATA)], chunks

assert extents(h, 2 * MIB, 4 * MIB) == [(MIB, 0), (MIB, 3)]
assert extents(h, 2 * MIB, 4 * MIB, nbd.CMD_FLAG_REQ_ONE) == [(MIB, 0)]
one = extents(h, 512, 4 * MIB, nbd.CMD_FLAG_REQ_ONE)
assert one == [(512, 0)], one

h.cache(MIB, 0)
h.zero(64 * KIB, 4 * MIB, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.zero(64 * KIB, 4 * MIB + 64 * KIB, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(128 * KIB, 4 * MIB) == bytes(128 * KIB)
assert extents(h, 64 * KIB, 4 * MIB)[0][1] & nbd.STATE_HOLE == 0
assert extents(h, 64 * KIB, 4 * MIB + 64 * KIB) == [(64 * KIB, 3)]
h.trim(MIB, 4 * MIB, nbd.CMD_FLAG_FUA)
assert h.pread(MIB, 4 * MIB) == bytes(MIB)
assert extents(h, MIB, 4 * MIB) == [(MIB, 3)]

h.set_strict_mode(h.get_strict_mode() & ~(nbd.STRICT_BOUNDS | nbd.STRICT_ZERO_SIZE | nbd.STRICT_FLAGS))
refused(("EINVAL",), h.pread, 512, size)
refused(("ENOSPC",), h.pwrite, b"x" * 512, size)
refused(("ENOSPC",), h.zero, 4096, size - 512)
refused(("EINVAL", "ENOSPC"), h.trim, 4096, size - 512)
refused(("EINVAL",), h.pread_structured, 512, size - 1, lambda *_: 0)
assert h.pread(10, size - 10) == bytes(10)

cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([n]) * 4096), 16 * MIB + n * 4096) for n in range(64)]
while h.aio_in_flight():
    h.poll(-1)
assert all(h.aio_command_completed(cookie) for cookie in cookies)
assert h.pread(64 * 4096, 16 * MIB) == b"".join(bytes([n]) * 4096 for n in range(64))
h.shutdown()

h = connect(set_request_structured_replies=False)
assert not h.get_structured_replies_negotiated()
assert not h.can_df()
assert h.pread(4096, 16 * MIB + 4096) == b"\1" * 4096
h.set_strict_mode(0)
refused(("EINVAL",), h.pread, 64 * MIB, size - MIB)
assert h.pread(4096, 16 * MIB + 4096) == b"\1" * 4096
h.shutdown()

h = nbd.NBD()
h.set_opt_mode(True)
h.set_uri_allow_local_file(True)
h.connect_uri(sys.argv[1])
names = []
h.opt_list(lambda name, description: names.append(name))
assert names == ["vram"], names
contexts = []
h.opt_list_meta_context(lambda name: contexts.append(name))
assert contexts == ["base:allocation"], contexts
h.set_export_name("there is no such export")
refused(("ENOENT",), h.opt_info)
h.set_export_name("")
h.opt_info()
assert h.get_size() == size
h.opt_abort()
print("all promises hold")
