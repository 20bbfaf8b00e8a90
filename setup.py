"""Owns the build of the optional C kernel; everything else about the package is in pyproject.toml.

Where no compiler is at hand the extension is left out and the numpy path does its work.
"""

from __future__ import annotations

import sysconfig

from setuptools import Extension, setup

# The stable ABI lets one wheel serve every CPython from 3.11 on; free-threaded builds do not have it.
stable_abi = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    ext_modules=[
        Extension(
            "producer.encoding._kernel",
            sources=[f"producer/encoding/{name}.c" for name in ("_kernel", "_bind", "_avro", "_frame", "_hash")],
            depends=["producer/encoding/_avro.h"],
            extra_compile_args=["-O3", "-std=gnu11", "-fvisibility=hidden", "-Wall", "-Wextra"],
            define_macros=[("LIMITED_API", "1")] if stable_abi else [],
            py_limited_api=stable_abi,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if stable_abi else {},
)
