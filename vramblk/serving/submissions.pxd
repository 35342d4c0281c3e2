# C types of submissions.py, for the compiler alone.
cimport cython
from vramblk.nbd.replyheaders cimport bytes_t, word_t
from vramblk.nbd.runs cimport Side
from vramblk.shared.ring cimport SubmissionRing

cdef class Unit:
    cdef readonly unsigned long long number
    cdef readonly object request

cdef class PlainUnit:
    cdef readonly unsigned long long number
    cdef readonly int command
    cdef readonly bytes_t offset
    cdef readonly word_t length, payload, low, high

@cython.locals(cookie=word_t[::1])
cpdef PlainUnit plain_unit(unsigned long long number, int command, Side side)

cdef class RunUnit:
    cdef readonly unsigned long long number
    cdef readonly int op
    cdef readonly Py_ssize_t first, requests, start

cdef class Submission:
    cdef public object owner, large_read, large_write
    cdef public long long received_ns
    cdef public unsigned long long end
    cdef public Py_ssize_t reply_start, reply_end, columns_end, tx_end
    cdef public bint has_payload
    cdef public list accounts, units, statuses, repaired
