# C types of direct.py, for the compiler alone.
cimport cython
from vramblk.memory.copies cimport Copies
from vramblk.serving.tally cimport Tally
from vramblk.system cimport ccalls as calls

ctypedef unsigned long long bytes_t

cdef int _MOST_REQUESTS, _MOST_GOES, _SPINS, _DEEP, _WEIGHT_SHIFT, _EAGAIN, _ENOMEM, _ENOBUFS, _BLOCK_SHIFT, _BOUNDS
cdef Py_ssize_t _MOST_BYTES, _RECEIVE_BYTES, _HEADER_BYTES
cdef bytes_t _REQUEST, _EXTENDED_REQUEST, _SIMPLE, _STRUCTURED, _EXTENDED, _DATA_DONE, _NONE_DONE
cdef bytes_t _READ_HEAD, _WRITE_HEAD, _FUA, _DF, _PAYLOAD_LEN
cdef Py_ssize_t _READ, _WRITE, _SINCE, _EXPORT, _STATE, _BATCHES, _BATCH_REQUESTS, _BUSY, _SLEEPS
cdef int _NOTHING, _THIS
cdef unsigned long long _DRAINING

cdef class DirectPath:
    cdef int _descriptor
    cdef unsigned char[::1] _slab, _blocks
    cdef bytes_t _address, _magic, _ignored_reading, _ignored_writing
    cdef Py_ssize_t _piece, _rx, _rx_bytes, _tx, _tx_end, _export, _request, _read_reply, _done_reply, _histogram, _first
    cdef bint _extended, _structured, _read_only, _drains
    cdef Copies _copies
    cdef Tally _tally
    cdef unsigned long long[::1] _control, _spans
    cdef long long[::1] _counts, _cells
    cdef public Py_ssize_t position, have, taken, laid, unsent, end
    cdef public long long since_ns, first_ns, last_ns
    cdef public bint left, again, ended, starved
    cdef public int error, failed
    cdef public Py_ssize_t goes, deep, weight, looked_at, reads, writes, read_bytes, write_bytes

    @cython.locals(left=Py_ssize_t)
    cdef int _make_room(self) except -1

    @cython.locals(begin=Py_ssize_t, came=bint, count=Py_ssize_t, got=cython.longlong, last_ns=cython.longlong)
    cpdef Py_ssize_t go(self) except -1

    @cython.locals(
        requests=Py_ssize_t, spins=int, until_ns=cython.longlong, busy_until_ns=cython.longlong, done=Py_ssize_t,
        timeout=int, now_ns=cython.longlong, found=int,
    )
    cpdef Py_ssize_t linger(
        self, object epoll, int epoll_descriptor, int timeout_ms, long long spin_ns, bint alone,
    ) except -1

    cpdef object abandon(self)
    cdef int _note_no_input(self, long long got) except -1

    @cython.locals(
        slab=cython.uchar[::1], copies=Copies, request=Py_ssize_t, at=Py_ssize_t, head=bytes_t, offset=bytes_t,
        length=bytes_t, reads=bint, end=Py_ssize_t, size=Py_ssize_t, data=Py_ssize_t, status=int,
    )
    cdef bint _take(self) except -1

    @cython.locals(spans=cython.ulonglong[::1], index=Py_ssize_t)
    cdef bint _overtakes(self, bytes_t start, bytes_t stop) except -1

    cdef int _begin(self, Py_ssize_t end) except -1

    @cython.locals(slab=cython.uchar[::1], cookie=bytes_t)
    cdef int _lay_read(self, Py_ssize_t at, Py_ssize_t to, bytes_t offset, bytes_t length) except -1

    @cython.locals(slab=cython.uchar[::1], cookie=bytes_t)
    cdef int _lay_done(self, Py_ssize_t at, Py_ssize_t to, bytes_t offset) except -1

    @cython.locals(status=int)
    cdef int _end_go(self) except -1

    @cython.locals(sent=cython.longlong, now_ns=cython.longlong)
    cdef int _answer(self) except -1

    @cython.locals(bucket=Py_ssize_t)
    cdef int _count(self, Py_ssize_t requests) except -1

    cdef int _add(self, Py_ssize_t index, long long amount) except -1
