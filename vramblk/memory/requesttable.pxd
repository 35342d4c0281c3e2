# C types of requesttable.py, for the compiler alone.
cimport cython

cdef class RequestTable:
    cdef readonly Py_ssize_t requests
    cdef unsigned int[:, ::1] _cells
    cdef list _columns

    @cython.locals(
        cells=cython.uint[:, ::1], columns=cython.uint[:, ::1], row=Py_ssize_t, index=Py_ssize_t,
    )
    cpdef object add(self, Py_ssize_t filled, Py_ssize_t window, Py_ssize_t first, Py_ssize_t count)
