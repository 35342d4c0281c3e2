# C types of requesttable.py, for the compiler alone.
cimport cython
from vramblk.shared.descriptors cimport Columns

cdef class RequestTable:
    cdef readonly Py_ssize_t requests
    cdef Columns _table
    cdef list _columns

    @cython.locals(columns=Columns)
    cpdef object add(self, Py_ssize_t filled, Py_ssize_t window, Py_ssize_t first, Py_ssize_t count)
