"""The few OpenCL calls that every batch makes, directly through ctypes on pyopencl's handles.

pyopencl's own wrappers cost several times what the driver does (``set_arg`` of a 4 KiB table 11 to
15 us against 1), and the event that it returns for a copy waits when it is dropped. Everything that
is not called per batch goes through pyopencl.

A status is returned by every function here and must be checked by the caller; ``failed`` makes the
exception.
"""

from __future__ import annotations

import ctypes
import errno
from ctypes import POINTER, c_int32, c_size_t, c_uint32, c_void_p
from typing import Any

from ..shared import stages
from ..shared.stages import Stage
from .base import DeviceError

_STATUS_NAMES = {
    -1: "CL_DEVICE_NOT_FOUND",
    -2: "CL_DEVICE_NOT_AVAILABLE",
    -4: "CL_MEM_OBJECT_ALLOCATION_FAILURE",
    -5: "CL_OUT_OF_RESOURCES",
    -6: "CL_OUT_OF_HOST_MEMORY",
    -14: "CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST",
    -30: "CL_INVALID_VALUE",
    -33: "CL_INVALID_DEVICE",
    -34: "CL_INVALID_CONTEXT",
    -36: "CL_INVALID_COMMAND_QUEUE",
    -38: "CL_INVALID_MEM_OBJECT",
    -48: "CL_INVALID_KERNEL",
    -52: "CL_INVALID_KERNEL_ARGS",
    -9999: "CL_DEVICE_FAULT (an illegal access, as NVIDIA reports it)",
}
_NO_MEMORY = frozenset({-4, -5, -6})
#: After these nothing that is sent to the queue can succeed again.
_LOST = frozenset({-1, -2, -33, -34, -36, -9999})

_EVENT_EXECUTION_STATUS = 0x11D3


class HotCalls:
    """The calls, each with its argument types declared; all return an OpenCL status, 0 for success.

    Attributes:
        set_arg: (kernel, index, size, address)
        launch: (queue, kernel, dimensions, None, global sizes, local sizes, 0, None, event or None)
        read: (queue, buffer, blocking, offset, size, host address, 0, None, event or None)
        write: as ``read``
        finish: (queue)
        addresses: of the functions behind read, write and finish
    """

    def __init__(self) -> None:
        from pyopencl import _cl

        # Symbols of a library's dependencies are found through its handle: so this is the very
        # loader that made pyopencl's handles, not another one of the same name.
        library = ctypes.CDLL(_cl.__file__)
        transfer = [c_void_p, c_void_p, c_uint32, c_size_t, c_size_t, c_void_p, c_uint32, c_void_p, c_void_p]
        sizes = POINTER(c_size_t)
        launch = [c_void_p, c_void_p, c_uint32, c_void_p, sizes, sizes, c_uint32, c_void_p, c_void_p]
        self.set_arg = _declare(library, "clSetKernelArg", [c_void_p, c_uint32, c_size_t, c_void_p])
        self.launch = _declare(library, "clEnqueueNDRangeKernel", launch)
        self.read = _declare(library, "clEnqueueReadBuffer", transfer)
        self.write = _declare(library, "clEnqueueWriteBuffer", transfer)
        self.finish = _declare(library, "clFinish", [c_void_p])
        self.addresses = _address(self.read), _address(self.write), _address(self.finish)
        self._event_info = _declare(
            library, "clGetEventInfo", [c_void_p, c_uint32, c_size_t, c_void_p, c_void_p]
        )
        self._release_event = _declare(library, "clReleaseEvent", [c_void_p])
        if stages.active is not None:
            timed = stages.active.engine.timed
            self.set_arg = timed(self.set_arg, Stage.SET_ARG)
            self.launch = timed(self.launch, Stage.LAUNCH)
            self.read = timed(self.read, Stage.COPY)
            self.write = timed(self.write, Stage.COPY)
            self.finish = timed(self.finish, Stage.FINISH)

    def take_event_status(self, event: int) -> int:
        """Execution status of a command that must be over, negative if it failed; drops the event."""
        status = c_int32(0)
        asked = self._event_info(event, _EVENT_EXECUTION_STATUS, 4, ctypes.byref(status), None)
        released = self._release_event(event)
        return int(status.value or asked or released)


def _address(function: Any) -> int:
    return ctypes.cast(function, c_void_p).value or 0


def _declare(library: ctypes.CDLL, name: str, arguments: list[Any]) -> Any:
    function = getattr(library, name)
    function.argtypes = arguments
    function.restype = c_int32
    return function


def sizes(lanes: int, groups: int) -> ctypes.Array[c_size_t]:
    """Sizes of a launch as OpenCL takes them."""
    return (c_size_t * 2)(lanes, groups)


def failed(call: str, status: int) -> DeviceError:
    """The exception for a status that is not 0."""
    name = _STATUS_NAMES.get(status, f"status {status}")
    number = errno.ENOMEM if status in _NO_MEMORY else errno.EIO
    return DeviceError(number, f"{call}: {name}", lost=status in _LOST)


def device_words(device: int, parameter: int, count: int) -> tuple[int, ...] | None:
    """A device's property of ``count`` 32-bit words that pyopencl does not know; None if it has none."""
    from pyopencl import _cl

    ask = _declare(
        ctypes.CDLL(_cl.__file__), "clGetDeviceInfo", [c_void_p, c_uint32, c_size_t, c_void_p, c_void_p]
    )
    words = (c_uint32 * count)()
    return tuple(words) if ask(device, parameter, 4 * count, words, None) == 0 else None
