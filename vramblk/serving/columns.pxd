# C types of columns.py, for the compiler alone.
cimport cython
from vramblk.nbd.replyheaders cimport bytes_t, fill_done, fill_read_header, word_t
from vramblk.nbd.runs cimport Side
from vramblk.shared.descriptors cimport Columns

cdef class RunColumns:
    cdef Columns _columns
    cdef word_t[::1] _cookies, _slab
    cdef bytes_t _base, _arena, _header
    cdef bint _extended

    @cython.locals(
        columns=Columns, offsets=bytes_t[::1], lengths=word_t[::1], header=bytes_t, position=bytes_t,
        index=Py_ssize_t, offset=bytes_t, length=bytes_t, arena=bytes_t,
    )
    cpdef object lay_reads(self, Side side, Py_ssize_t first, Py_ssize_t start)

    @cython.locals(
        columns=Columns, offsets=bytes_t[::1], lengths=word_t[::1], payload=word_t[::1], base=bytes_t,
        index=Py_ssize_t, offset=bytes_t, arena=bytes_t,
    )
    cpdef object lay_writes(self, Side side, Py_ssize_t first, Py_ssize_t lane)

    @cython.locals(cookies=word_t[::1], kept=word_t[::1], index=Py_ssize_t)
    cdef object _keep_cookies(self, Side side, Py_ssize_t first)

    cpdef tuple request(self, Py_ssize_t column)

    @cython.locals(columns=Columns, cookies=word_t[::1], at=Py_ssize_t, column=Py_ssize_t, offset=bytes_t)
    cpdef object lay_done(self, Py_ssize_t first, Py_ssize_t count, Py_ssize_t start)

    cpdef object lay_reply(self, word_t low, word_t high, bytes_t offset, Py_ssize_t start)
    cpdef object lay_header(self, word_t low, word_t high, bytes_t offset, word_t length, Py_ssize_t start)

    @cython.locals(
        columns=Columns, cookies=word_t[::1], header=bytes_t, at=Py_ssize_t, column=Py_ssize_t, offset=bytes_t,
        length=bytes_t,
    )
    cpdef object lay_headers(self, Py_ssize_t first, Py_ssize_t count, Py_ssize_t start)
