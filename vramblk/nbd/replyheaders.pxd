# C types of replyheaders.py, for the compiler alone.
cimport cython

ctypedef unsigned int word_t
ctypedef unsigned long long bytes_t

cdef word_t _SIMPLE_MAGIC, _STRUCTURED_MAGIC, _EXTENDED_MAGIC, _DONE_NONE, _DONE_DATA

cpdef word_t byte_swapped(word_t word)

cpdef object fill_done(word_t[::1] words, Py_ssize_t at, word_t low, word_t high, bytes_t offset, bint extended)

@cython.locals(offset_high=word_t, offset_low=word_t, chunk=word_t)
cpdef object fill_read_header(
    word_t[::1] words, Py_ssize_t at, word_t low, word_t high, bytes_t offset, word_t length, Py_ssize_t header_bytes,
)
