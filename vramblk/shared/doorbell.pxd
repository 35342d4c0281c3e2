# C types of doorbell.py, for the compiler alone.

cdef class Doorbell:
    cdef unsigned long long[::1] _words
    cdef Py_ssize_t _at
    cdef int _writer
    cdef readonly int fd

    cpdef bint wake(self)
    cpdef bint wake_unordered(self)
    cpdef object begin_sleep(self)
    cpdef object end_sleep(self)
    cpdef object clear(self)
    cpdef bint wait(self, object ready, double timeout_s)
