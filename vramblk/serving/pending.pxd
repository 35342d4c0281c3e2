# C types of pending.py, for the compiler alone.
from vramblk.shared.ring cimport SubmissionRing

cdef class Pending:
    cdef public object connection, large_read, large_write
    cdef public long long received_ns
    cdef public unsigned long long end
    cdef public Py_ssize_t reply_start, reply_end, columns_end, tx_end
    cdef public bint has_payload
    cdef public list accounts, units, repaired
