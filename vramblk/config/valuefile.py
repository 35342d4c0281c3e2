"""``VRAMBLK_X_FILE``: the value of a plain option from a file, as Docker and Kubernetes mount secrets.

A file that gives no value is an error: an option that protects something must not be off because its
file is empty.
"""

from __future__ import annotations

import codecs
import os
import stat

from ..errors import ConfigError

_MOST_BYTES = 64 << 10
_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_value(variable: str, path: str) -> str:
    """The content of a file in UTF-8, without the newlines at its end.

    Raises:
        ConfigError: unreadable, empty, or not what was meant; names variable and file, never the content.
    """
    try:
        content = _read(path)
    except OSError as error:
        raise _refuse(variable, path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise _refuse(variable, path, str(error)) from None
    if content.startswith(_MARKS):
        raise _refuse(variable, path, "begins with a byte-order mark; save it as UTF-8 without BOM")
    if b"\r" in content:
        raise _refuse(variable, path, f"has Windows line ends (CRLF); type: sed -i 's/\\r$//' {path}")
    if not content.strip():
        raise _refuse(variable, path, f"is empty; write the value into it, or unset {variable}")
    try:
        return content.decode().rstrip("\n")
    except UnicodeDecodeError as error:
        raise _refuse(variable, path, f"is not UTF-8 at byte {error.start}") from None


def _read(path: str) -> bytes:
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would wait
        raise ValueError("is not a regular file")
    with open(path, "rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError("is longer than 64 KiB; expected one value")
    return content


def _refuse(variable: str, path: str, reason: str) -> ConfigError:
    return ConfigError(f"{variable}={path}: the file {reason}")
