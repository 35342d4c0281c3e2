# C types of columns.py, for the compiler alone.
cimport cython
from vramblk.nbd.runs cimport Side, bytes_t, fill_done, fill_read_header, word_t

cdef class Columns:
    cdef word_t[:, ::1] _cells
    cdef word_t[::1] _slab
    cdef bytes_t _base, _arena
    cdef word_t _header
    cdef bint _extended

    @cython.locals(
        cells=word_t[:, ::1], offsets=bytes_t[::1], lengths=word_t[::1], cookies=word_t[::1],
        header=word_t, position4=bytes_t, index=Py_ssize_t, column=Py_ssize_t, offset=bytes_t, length=word_t,
        arena=bytes_t,
    )
    cpdef object lay_reads(self, Side side, Py_ssize_t first, Py_ssize_t start)

    @cython.locals(
        cells=word_t[:, ::1], offsets=bytes_t[::1], lengths=word_t[::1], cookies=word_t[::1],
        payload=word_t[::1], base=bytes_t, index=Py_ssize_t, column=Py_ssize_t, offset=bytes_t, arena=bytes_t,
    )
    cpdef object lay_writes(self, Side side, Py_ssize_t first, Py_ssize_t lane)

    @cython.locals(cells=word_t[:, ::1], at=Py_ssize_t, column=Py_ssize_t, offset=bytes_t)
    cpdef object lay_done(self, Py_ssize_t first, Py_ssize_t count, Py_ssize_t start)

    cpdef object lay_header(self, Side side, Py_ssize_t start)
