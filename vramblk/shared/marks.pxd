# C types of marks.py, for the compiler alone.
cimport cython

@cython.locals(
    end=cython.longlong, column=Py_ssize_t, place=cython.longlong, shape=cython.uint, length=cython.longlong,
    before=cython.longlong, start=cython.longlong, last=cython.longlong, block=cython.longlong,
)
cpdef bint mark_run(
    unsigned char[::1] blocks, long long arena_blocks, unsigned int[:, ::1] columns, Py_ssize_t first,
    Py_ssize_t count,
)
