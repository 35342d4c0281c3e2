# The functions of calls.py in C, for the compiler alone.
from libc.errno cimport EINTR, errno
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

cdef extern from "sys/socket.h" nogil:
    ssize_t c_recv "recv"(int, void *, size_t, int)
    ssize_t c_send "send"(int, const void *, size_t, int)
    enum: MSG_NOSIGNAL
    enum: MSG_DONTWAIT

cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        int fd
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int c_epoll_wait "epoll_wait"(int, epoll_event *, int, int)
    enum: EPOLLIN

cdef extern from "endian.h" nogil:
    uint32_t be32toh(uint32_t)
    uint64_t be64toh(uint64_t)
    uint32_t htobe32(uint32_t)
    uint64_t htobe64(uint64_t)

cdef extern from "time.h" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int, timespec *)
    enum: CLOCK_MONOTONIC

ctypedef int (*transfer_t)(void *, void *, uint32_t, size_t, size_t, void *, uint32_t, void *, void *) noexcept nogil
ctypedef int (*finish_t)(void *) noexcept nogil

cdef enum:
    NOTHING = 0
    THIS = 1
    OTHERS = 2
    _MOST_EVENTS = 4

cdef inline long long receive(int descriptor, unsigned char[::1] buffer, size_t at, size_t count) noexcept:
    cdef ssize_t got
    while True:
        got = c_recv(descriptor, &buffer[at], count, MSG_DONTWAIT)
        if got >= 0:
            return got
        if errno != EINTR:
            return -errno

cdef inline long long send(int descriptor, unsigned char[::1] buffer, size_t at, size_t count) noexcept:
    cdef ssize_t sent
    while True:
        sent = c_send(descriptor, &buffer[at], count, MSG_NOSIGNAL | MSG_DONTWAIT)
        if sent >= 0:
            return sent
        if errno != EINTR:
            return -errno

cdef inline int wait(object epoll, int epoll_descriptor, int descriptor, int timeout_ms) noexcept:
    cdef epoll_event events[_MOST_EVENTS]
    cdef int found
    with nogil:
        found = c_epoll_wait(epoll_descriptor, events, _MOST_EVENTS, timeout_ms)
    if found == 0:
        return NOTHING
    return THIS if found == 1 and events[0].data.fd == descriptor and events[0].events == EPOLLIN else OTHERS

cdef inline long long now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <long long>now.tv_sec * 1000000000 + now.tv_nsec

cdef inline unsigned long long load32(unsigned char[::1] buffer, size_t at) noexcept:
    cdef uint32_t value
    memcpy(&value, &buffer[at], 4)
    return be32toh(value)

cdef inline unsigned long long load64(unsigned char[::1] buffer, size_t at) noexcept:
    cdef uint64_t value
    memcpy(&value, &buffer[at], 8)
    return be64toh(value)

cdef inline void store32(unsigned char[::1] buffer, size_t at, unsigned long long value) noexcept:
    cdef uint32_t swapped = htobe32(<uint32_t>value)
    memcpy(&buffer[at], &swapped, 4)

cdef inline void store64(unsigned char[::1] buffer, size_t at, unsigned long long value) noexcept:
    cdef uint64_t swapped = htobe64(value)
    memcpy(&buffer[at], &swapped, 8)

cdef inline void move(unsigned char[::1] buffer, size_t to, size_t start, size_t count) noexcept:
    memmove(&buffer[to], &buffer[start], count)

cdef inline void mark(unsigned char[::1] buffer, size_t first, size_t last) noexcept:
    memset(&buffer[first], 1, last - first + 1)

cdef inline void copy(unsigned long long to, unsigned long long start, size_t count) noexcept:
    memcpy(<void *>to, <const void *>start, count)

cdef inline int transfer(
    unsigned long long function, unsigned long long queue, unsigned long long memory, size_t offset, size_t count,
    unsigned long long address,
) noexcept:
    return (<transfer_t>function)(<void *>queue, <void *>memory, 0, offset, count, <void *>address, 0, NULL, NULL)

cdef inline int finish(unsigned long long function, unsigned long long queue) noexcept:
    return (<finish_t>function)(<void *>queue)
