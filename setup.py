"""Compiles the hot modules where a C compiler and Python's headers are; the rest is in pyproject.toml.

They are the modules with a .pxd file beside them, which gives C types to their loops over requests. They are
ordinary Python and run as they are too, slower. A module without C types gains nothing by being compiled.
VRAMBLK_COMPILE=no leaves them uncompiled, =require makes a failure to compile an error.
VRAMBLK_SANITIZE=address makes them for AddressSanitizer, in a copy of the source tree. They run only with
libasan preloaded.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

#: Indices are proven where they are made.
UNCHECKED = {"boundscheck": False, "wraparound": False, "initializedcheck": False, "cdivision": True}

wish = os.environ.get("VRAMBLK_COMPILE", "")
if wish not in ("", "no", "require"):
    raise SystemExit(f"VRAMBLK_COMPILE={wish}: allowed are no, require and nothing")

sanitizer = os.environ.get("VRAMBLK_SANITIZE", "")
if sanitizer not in ("", "address"):
    raise SystemExit(f"VRAMBLK_SANITIZE={sanitizer}: allowed are address and nothing")
#: No debug information: it would differ from one build directory to the next.
FLAGS, LINK_FLAGS = ["-O2", "-g0"], []
if sanitizer:  # not optimized: that takes a third of the time to compile
    FLAGS, LINK_FLAGS = ["-O0", "-g1", f"-fsanitize={sanitizer}"], [f"-fsanitize={sanitizer}"]


def extensions() -> list[Extension]:
    every = sorted(Path("vramblk").rglob("*.pxd"))
    for_others = [str(types) for types in every if not types.with_suffix(".py").exists()]
    found = [
        Extension(
            ".".join(types.with_suffix("").parts), [str(types.with_suffix(".py"))],
            extra_compile_args=FLAGS, extra_link_args=LINK_FLAGS, optional=not wish,
            depends=[str(types), *for_others],  # else a source distribution would leave them out
        )
        for types in every
        if str(types) not in for_others
    ]  # fmt: skip
    if wish == "require" and not found:
        raise SystemExit("VRAMBLK_COMPILE=require: no module has a .pxd file beside it")
    made: list[Extension] = cythonize(
        found,
        build_dir="build/cython",
        compiler_directives={"language_level": 3, "annotation_typing": False, **UNCHECKED},
    )
    return made


setup(ext_modules=[] if wish == "no" else extensions())
