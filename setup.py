"""The compiled part, which is built where a C compiler is; everything else is in setup.cfg."""

from setuptools import Extension, setup

# Without contraction, multiplying and adding round as they do in NumPy.
KERNEL = Extension(
    "asr.decoding._kernel", ["asr/decoding/_kernel.c"], extra_compile_args=["-ffp-contract=off"], optional=True
)

setup(ext_modules=[KERNEL])
