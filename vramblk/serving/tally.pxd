# C types of tally.py, for the compiler alone.
cimport cython

cdef Py_ssize_t _BOUNDS

cdef class Tally:
    cdef long long[::1] _cells, _bounds
    cdef unsigned long long[::1] _traffic
    cdef Py_ssize_t _requests, _bytes, _latency, _sums, _receives, _sends

    @cython.locals(
        cells=cython.longlong[::1], bounds=cython.longlong[::1], low=Py_ssize_t, high=Py_ssize_t, middle=Py_ssize_t,
    )
    cpdef object answered(self, Py_ssize_t op, long long count, long long amount, long long elapsed_ns)
    cpdef object received(self, long long amount)
    cpdef object sent(self, long long amount)
