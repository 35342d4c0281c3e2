"""Compiles the hot modules where a C compiler and Python's headers are; the rest is in pyproject.toml.

The modules are ordinary Python and run as they are too, slower. Their C types are in the .pxd files.
VRAMBLK_COMPILE=no leaves them uncompiled, =require makes a failure to compile an error.
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

#: Whose .pxd gives C types to loops over requests; indices are proven where they are made.
TYPED = (
    "vramblk.memory.requesttable",
    "vramblk.nbd.runs",
    "vramblk.serving.columns",
    "vramblk.serving.tally",
    "vramblk.shared.marks",
    "vramblk.shared.ring",
)
#: What every batch passes through.
PLAIN = (
    "vramblk.engine",
    "vramblk.executor",
    "vramblk.memory.opencl",
    "vramblk.nbd.replies",
    "vramblk.nbd.transmission",
    "vramblk.nbd.validation",
    "vramblk.serving.blockstatus",
    "vramblk.serving.connection",
    "vramblk.serving.pending",
    "vramblk.serving.receive",
    "vramblk.serving.replyqueue",
    "vramblk.serving.submission",
    "vramblk.worker",
)

wish = os.environ.get("VRAMBLK_COMPILE", "")
if wish not in ("", "no", "require"):
    raise SystemExit(f"VRAMBLK_COMPILE={wish}: allowed are no, require and nothing")


def extensions(names: tuple[str, ...], **directives: bool) -> list[Extension]:
    found = [
        # No debug information: it would differ from one build directory to the next.
        Extension(
            name, [name.replace(".", "/") + ".py"], extra_compile_args=["-O2", "-g0"], optional=not wish
        )
        for name in names
    ]
    made: list[Extension] = cythonize(
        found,
        build_dir="build/cython",
        compiler_directives={"language_level": 3, "annotation_typing": False, **directives},
    )
    return made


unchecked = {"boundscheck": False, "wraparound": False, "initializedcheck": False, "cdivision": True}
setup(ext_modules=[] if wish == "no" else extensions(TYPED, **unchecked) + extensions(PLAIN))
