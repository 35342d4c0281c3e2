# C types of contiguousfifo.py, for the compiler alone.
cimport cython

cdef class ContiguousFifo:
    cdef readonly Py_ssize_t size
    cdef Py_ssize_t _head, _tail, _live

    @cython.locals(head=Py_ssize_t, tail=Py_ssize_t)
    cpdef Py_ssize_t allocate(self, Py_ssize_t amount)

    @cython.locals(head=Py_ssize_t, tail=Py_ssize_t)
    cpdef Py_ssize_t largest(self)

    cpdef object release(self, Py_ssize_t end)
    cpdef object restore(self, Py_ssize_t live, Py_ssize_t head)
