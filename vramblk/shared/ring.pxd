# C types of ring.py, for the compiler alone.
cimport cython
from vramblk.shared.contiguousfifo cimport ContiguousFifo
from vramblk.shared.doorbell cimport Doorbell

cdef Py_ssize_t _ENTRIES, _ENTRY_CELLS, _TAIL, _DONE, _FAILURES, _NOTHING
cdef unsigned long long _COLUMNS, _MASK, _MASK32

cdef class SubmissionRing:
    cdef unsigned long long[::1] _words, _entries
    cdef unsigned int[::1] _status
    cdef Doorbell _engine
    cdef unsigned long long _failures_taken
    cdef readonly unsigned long long tail, published
    cdef public unsigned long long taken
    cdef readonly ContiguousFifo columns

    cpdef Py_ssize_t room(self)

    @cython.locals(entries=cython.ulonglong[::1], at=Py_ssize_t)
    cpdef object push(
        self, unsigned long long op, unsigned long long export, unsigned long long first, unsigned long long count,
        unsigned long long lo, unsigned long long hi, unsigned long long offset, unsigned long long length,
        unsigned long long flags=*,
    )

    cpdef object cancel(self, unsigned long long number)
    cpdef object rewind(self, unsigned long long tail)
    cpdef bint publish(self)
    cpdef bint wake(self)
    cpdef unsigned long long done(self)
    cpdef bint failed(self)

    @cython.locals(status=cython.uint)
    cpdef unsigned int take_status(self, unsigned long long number)

cdef class CompletionRing:
    cdef unsigned long long[::1] _words, _entries
    cdef unsigned int[::1] _status
    cdef unsigned short[::1] _column_status
    cdef unsigned long long _failures

    cpdef unsigned long long tail(self)
    @cython.locals(
        cells=cython.ulonglong[::1], at=Py_ssize_t, what=cython.ulonglong, where=cython.ulonglong,
    )
    cpdef tuple entry(self, unsigned long long number)

    cpdef object complete(self, unsigned long long done)
    cpdef object fail(self, unsigned long long number, unsigned int errno)

    @cython.locals(column=cython.ulonglong)
    cpdef object set_column_status(self, unsigned long long first, unsigned long long count, unsigned int errno)

    cpdef object forget(self)
