# C types of runs.py, for the compiler alone.
cimport cython

ctypedef unsigned int word_t
ctypedef unsigned long long bytes_t

cdef word_t _ALIGNED, _LONGEST
cdef Py_ssize_t _MOST, _HEADER
cdef word_t _SIMPLE_MAGIC, _STRUCTURED_MAGIC, _EXTENDED_MAGIC, _DONE_NONE, _DONE_DATA

cpdef word_t turned(word_t word)

cdef class Side:
    cdef public Py_ssize_t count
    cdef public Py_ssize_t total_bytes
    cdef public bytes_t[::1] offset
    cdef public word_t[::1] length
    cdef public word_t[::1] payload
    cdef public word_t[::1] cookie

cdef class Plain:
    cdef public Side reads
    cdef public Side writes
    cdef public Py_ssize_t end
    cdef word_t[::1] _words
    cdef bytes_t _size, _arena
    cdef Py_ssize_t _run_bytes
    cdef bint _extended
    cdef word_t _magic
    cdef long long _read, _write, _write_fua

    @cython.locals(
        words=word_t[::1], reads=Side, writes=Side,
        read_offset=bytes_t[::1], read_length=word_t[::1], read_cookie=word_t[::1],
        write_offset=bytes_t[::1], write_length=word_t[::1], write_cookie=word_t[::1], payload=word_t[::1],
        header=Py_ssize_t, budget=Py_ssize_t, read_count=Py_ssize_t, write_count=Py_ssize_t,
        read_bytes=Py_ssize_t, write_bytes=Py_ssize_t, at=Py_ssize_t, kind=word_t,
        offset=bytes_t, length=word_t,
    )
    cpdef Py_ssize_t take(self, Py_ssize_t position, Py_ssize_t have)

cpdef object fill_done(word_t[::1] words, Py_ssize_t at, word_t low, word_t high, bytes_t offset, bint extended)

@cython.locals(offset=bytes_t, high=word_t, low=word_t, chunk=word_t)
cpdef object fill_read_header(word_t[::1] words, Py_ssize_t at, Side side, Py_ssize_t header_bytes)
