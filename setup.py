"""Owns the build of the optional C kernels; everything else about the package is in pyproject.toml.

Where no compiler is at hand the extensions are left out and numpy and the database's driver do its work.
"""

from __future__ import annotations

import sysconfig

from setuptools import Extension, setup

# The stable ABI lets one wheel serve every CPython from 3.11 on; free-threaded builds do not have it.
stable_abi = not sysconfig.get_config_var("Py_GIL_DISABLED")

KERNELS = {
    "producer.encoding._kernel": [
        f"producer/encoding/{name}.c" for name in ("_kernel", "_bind", "_avro", "_frame", "_hash")
    ],
    "producer.sources.sql._pgcopy": ["producer/sources/sql/_pgcopy.c"],
}

setup(
    ext_modules=[
        Extension(
            name,
            sources=sources,
            depends=["producer/encoding/_avro.h"],
            extra_compile_args=["-O3", "-std=gnu11", "-fvisibility=hidden", "-Wall", "-Wextra"],
            define_macros=[("LIMITED_API", "1")] if stable_abi else [],
            py_limited_api=stable_abi,
            optional=True,
        )
        for name, sources in KERNELS.items()
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if stable_abi else {},
)
