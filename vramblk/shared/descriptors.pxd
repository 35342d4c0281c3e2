# C types of descriptors.py, for the compiler alone.
cimport cython

ctypedef unsigned int word_t
ctypedef unsigned long long bytes_t

cdef Py_ssize_t _ROWS, _OFFSET, _POSITION, _SHAPE
cdef int _OFFSET_SHIFT, _POSITION_SHIFT, _ARENA_SHIFT
cdef word_t _LENGTH_MASK

# Final, so that a call is not looked up in a subclass first.
@cython.final
cdef class Columns:
    cdef public word_t[:, ::1] cells

    cpdef object put(self, Py_ssize_t column, bytes_t offset, bytes_t position, bytes_t length, bytes_t arena)

    @cython.locals(row=Py_ssize_t, index=Py_ssize_t, cells=word_t[:, ::1], theirs=word_t[:, ::1])
    cpdef object copy(self, Py_ssize_t at, Columns source, Py_ssize_t first, Py_ssize_t count)

    @cython.locals(offset=bytes_t)
    cpdef bytes_t offset(self, Py_ssize_t column) noexcept

    @cython.locals(position=bytes_t)
    cpdef bytes_t position(self, Py_ssize_t column) noexcept

    cpdef bytes_t length(self, Py_ssize_t column) noexcept
    cpdef bytes_t arena(self, Py_ssize_t column) noexcept

    @cython.locals(arena=bytes_t)
    cpdef tuple place(self, Py_ssize_t column, bytes_t arena_bytes)
