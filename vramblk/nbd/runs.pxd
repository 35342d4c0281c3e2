# C types of runs.py, for the compiler alone.
cimport cython
from vramblk.nbd.replyheaders cimport bytes_t, byte_swapped, word_t

cdef word_t _ALIGNED, _LONGEST
cdef Py_ssize_t _MOST, _HEADER, _STAMPS
cdef int _BLOCK_SHIFT
cdef bytes_t _STAMP_MASK

cdef class Side:
    cdef public Py_ssize_t count
    cdef public Py_ssize_t total_bytes
    cdef public bytes_t[::1] offset
    cdef public word_t[::1] length
    cdef public word_t[::1] payload
    cdef public word_t[::1] cookie

cdef class Plain:
    cdef public Side reads
    cdef public Side writes
    cdef public Py_ssize_t end
    cdef public bytes_t runs
    cdef word_t[::1] _words
    cdef bytes_t _size, _arena
    cdef Py_ssize_t _run_bytes
    cdef bint _extended
    cdef word_t _magic
    cdef word_t[::1] _stamps
    cdef long long _read, _write, _write_fua

    @cython.locals(
        words=word_t[::1], reads=Side, writes=Side,
        read_offset=bytes_t[::1], read_length=word_t[::1], read_cookie=word_t[::1],
        write_offset=bytes_t[::1], write_length=word_t[::1], write_cookie=word_t[::1], payload=word_t[::1],
        header=Py_ssize_t, budget=Py_ssize_t, read_count=Py_ssize_t, write_count=Py_ssize_t,
        read_bytes=Py_ssize_t, write_bytes=Py_ssize_t, at=Py_ssize_t, kind=word_t,
        offset=bytes_t, length=word_t, stamps=word_t[::1], run=word_t, first=bytes_t, last=bytes_t, block=bytes_t,
        overlaps=bint, end=bytes_t, index=Py_ssize_t,
    )
    cpdef Py_ssize_t take(self, Py_ssize_t position, Py_ssize_t have)
