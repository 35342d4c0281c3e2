# C types of copies.py, for the compiler alone.
cimport cython
from vramblk.system cimport ccalls as calls

ctypedef unsigned long long bytes_t

cdef class Copies:
    cdef readonly bytes_t size_bytes, arena_bytes
    cdef public bint queued
    cdef public object failure
    cdef unsigned long long[::1] _places

    cpdef bint within(self, bytes_t offset, bytes_t length)
    cpdef int read(self, bytes_t offset, bytes_t length, bytes_t address) except? -1
    cpdef int write(self, bytes_t offset, bytes_t length, bytes_t address) except? -1
    cpdef int finish(self) except? -1

cdef class MappedCopies(Copies):
    cpdef int read(self, bytes_t offset, bytes_t length, bytes_t address) except? -1
    cpdef int write(self, bytes_t offset, bytes_t length, bytes_t address) except? -1

cdef class QueuedCopies(Copies):
    cdef unsigned long long _queue, _read, _write, _finish

    @cython.locals(arena=bytes_t)
    cpdef int read(self, bytes_t offset, bytes_t length, bytes_t address) except? -1

    @cython.locals(arena=bytes_t)
    cpdef int write(self, bytes_t offset, bytes_t length, bytes_t address) except? -1

    cpdef int finish(self) except? -1
