"""The NBD protocol, sans I/O: bytes go in, events come out.

Nothing here opens a socket, reads a clock, waits, or knows what an export is made of. The caller
owns the connection: it hands over whatever bytes have arrived, in pieces of any size, and does
what the returned events say. So the same code serves TCP, Unix sockets and TLS; deadlines and
backpressure are decided in one place, by the worker; and a test of the protocol is a function
call that compares bytes.

A connection has two phases. In the first, ``handshake``, client and server haggle about options
until an export is chosen; it is rare, small and never fast, so it is written to be read against
the specification. In the second, ``transmission`` with ``replies``, requests and replies flow; it
runs for every block and is written to be fast. They share nothing but ``constants`` and the
``Begin`` event that ends the first and starts the second.

The client is not trusted. Input that breaks the protocol gets the error reply which the
specification names, or an end of the connection; it never raises. Exceptions that leave this
package mean that the caller broke the contract.

The specification is doc/proto.md of the NetworkBlockDevice project; docstrings name its sections.
"""
