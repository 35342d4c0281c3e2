# C types of intake.py, for the compiler alone.
cimport cython
from vramblk.shared.descriptors cimport Columns, bytes_t

cdef Py_ssize_t _FLAGS
cdef unsigned long long _FLAG_MASK
cdef int _SHIFT
cdef unsigned int _STEP, _LAST

cdef class Entry:
    cdef readonly Py_ssize_t window, op, first, at, count
    cdef readonly bytes_t number, lo, hi, offset, length, flags
    cdef readonly object ranges

cdef class Intake:
    cdef bytes_t _size, _arena, _mask
    cdef unsigned char[::1] _blocks, _flags
    cdef unsigned int[::1] _stamps
    cdef unsigned int _batch
    cdef bint _flagged

    @cython.locals(index=bytes_t)
    cpdef object begin(self)

    @cython.locals(least=cython.uint, block=bytes_t, suspect=bint)
    cpdef long long scan(self, bytes_t offset, bytes_t length, unsigned int rank)

    @cython.locals(stamp=cython.uint, block=bytes_t)
    cpdef object commit(self, bytes_t offset, bytes_t length, unsigned int rank, bint mark)

    @cython.locals(
        total=cython.longlong, suspect=bint, wait=bint, column=Py_ssize_t, least=cython.uint, length=bytes_t,
        before=bytes_t, offset=bytes_t, place=bytes_t, block=bytes_t,
    )
    cpdef long long take_run(
        self, Columns theirs, Columns ours, Py_ssize_t first, Py_ssize_t at,
        Py_ssize_t count, bytes_t lo, bytes_t hi, unsigned int rank,
    )

    @cython.locals(
        same=cython.uint, stamp=cython.uint, column=Py_ssize_t, length=bytes_t, offset=bytes_t, block=bytes_t,
    )
    cpdef bint meets(self, Columns ours, Py_ssize_t at, Py_ssize_t count, unsigned int rank)

    @cython.locals(column=Py_ssize_t, before=bytes_t)
    cpdef object commit_run(
        self, Columns ours, Py_ssize_t at, Py_ssize_t count, unsigned int rank, bint mark,
    )

    cpdef tuple place(self, Columns ours, Py_ssize_t column)
    cpdef object flag(self, bytes_t first, bytes_t last)
    cpdef object unflag(self)
