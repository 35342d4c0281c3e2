# C types of ring.py, for the compiler alone.
cimport cython

cdef Py_ssize_t _ENTRIES, _ENTRY_CELLS, _TAIL, _DONE, _FAILURES, _ENGINE_SLEEPING

cdef class ContiguousFifo:
    cdef readonly Py_ssize_t size
    cdef Py_ssize_t _head, _tail, _live

    @cython.locals(head=Py_ssize_t, tail=Py_ssize_t)
    cpdef Py_ssize_t allocate(self, Py_ssize_t amount)

    @cython.locals(head=Py_ssize_t, tail=Py_ssize_t)
    cpdef Py_ssize_t largest(self)

    cpdef object release(self, Py_ssize_t end)

cdef class SubmissionRing:
    cdef unsigned long long[::1] _words, _entries, _control
    cdef unsigned int[::1] _status
    cdef int _bell
    cdef unsigned long long _failures_taken
    cdef readonly unsigned long long tail
    cdef public unsigned long long taken
    cdef readonly ContiguousFifo columns

    cpdef Py_ssize_t room(self)

    @cython.locals(entries=cython.ulonglong[::1], at=Py_ssize_t)
    cpdef object push(
        self, unsigned long long op, unsigned long long export, unsigned long long first, unsigned long long count,
        unsigned long long lo, unsigned long long hi, unsigned long long offset, unsigned long long length,
        unsigned long long flags=*,
    )

    cpdef bint publish(self)
    cpdef unsigned long long done(self)
    cpdef bint failed(self)

    @cython.locals(status=cython.uint)
    cpdef unsigned int take_status(self, unsigned long long number)
