"""Numbers of the NBD protocol.

Source: doc/proto.md of the NetworkBlockDevice project. Each class names the section of that
document which defines it. Every number travels in network byte order.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

# "Newstyle negotiation"
NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
# "Fixed newstyle negotiation"
OPTION_REPLY_MAGIC = 0x0003E889045565A9
# "Request message"
REQUEST_MAGIC = 0x25609513
EXTENDED_REQUEST_MAGIC = 0x21E41C71
# "Simple reply message", "Structured reply chunk message", "Extended reply chunk message"
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF
EXTENDED_REPLY_MAGIC = 0x6E8A278C

# "Conventions": a string MUST be no longer than this, in bytes of UTF-8
MAXIMUM_STRING_BYTES = 4096

# "`base:allocation` metadata context"
BASE_ALLOCATION = "base:allocation"


class HandshakeFlag(IntFlag):
    """16 bits in the server's greeting. Section "Handshake flags"."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class ClientFlag(IntFlag):
    """32 bits with which the client answers the greeting. Section "Client flags"."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class TransmissionFlag(IntFlag):
    """16 bits that describe an export. Section "Transmission flags"."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_RESIZE = 1 << 9
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11
    BLOCK_STAT_PAYLOAD = 1 << 12


class Option(IntEnum):
    """What a client may ask during option haggling. Section "Option types"."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    PEEK_EXPORT = 4
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class OptionReply(IntEnum):
    """Type of a reply to an option; errors have bit 31 set. Section "Option reply types"."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = (1 << 31) + 1
    ERR_POLICY = (1 << 31) + 2
    ERR_INVALID = (1 << 31) + 3
    ERR_PLATFORM = (1 << 31) + 4
    ERR_TLS_REQD = (1 << 31) + 5
    ERR_UNKNOWN = (1 << 31) + 6
    ERR_SHUTDOWN = (1 << 31) + 7
    ERR_BLOCK_SIZE_REQD = (1 << 31) + 8
    ERR_TOO_BIG = (1 << 31) + 9
    ERR_EXT_HEADER_REQD = (1 << 31) + 10


class InfoType(IntEnum):
    """What INFO and GO ask for and what NBD_REP_INFO carries. Section "Option reply types"."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Command(IntEnum):
    """Type of a request. Section "Request types"."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7
    RESIZE = 8


class CommandFlag(IntFlag):
    """16 bits that modify a request. Section "Command flags"."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4
    PAYLOAD_LEN = 1 << 5


class ReplyFlag(IntFlag):
    """16 bits of a reply chunk. Section "Structured and extended header reply flags"."""

    DONE = 1 << 0


class ReplyType(IntEnum):
    """Type of a structured or extended reply chunk. Section "Structured reply types"."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    BLOCK_STATUS_EXT = 6
    ERROR = (1 << 15) + 1
    ERROR_OFFSET = (1 << 15) + 2


class Error(IntEnum):
    """Error numbers on the wire, independent of the platform's own. Section "Error values"."""

    NONE = 0
    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


class BlockState(IntFlag):
    """State of an extent in the context base:allocation. Section "`base:` metadata namespace"."""

    HOLE = 1 << 0
    ZERO = 1 << 1


STATE_HOLE = BlockState.HOLE
STATE_ZERO = BlockState.ZERO
