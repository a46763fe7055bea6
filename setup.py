"""The compiled part, which is built where a C compiler is; everything else is in setup.cfg."""

from setuptools import Extension, setup

# Without contraction, multiplying and adding round as they do in NumPy; the second line lets loops become vectors.
EXACT = ["-ffp-contract=off"]
VECTORS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
KERNELS = [
    Extension(
        "asr.decoding._kernel",
        ["asr/decoding/_kernel.c"],
        depends=["asr/decoding/_scoring.h"],
        extra_compile_args=EXACT,
        optional=True,
    ),
    Extension(
        "asr._encoder_kernel",
        ["asr/_encoder_kernel.c"],
        depends=["asr/_activations.h", "asr/_encoder_path.h"],
        extra_compile_args=EXACT + VECTORS,
        optional=True,
    ),
    Extension(
        "asr._lstm_kernel",
        ["asr/_lstm_kernel.c"],
        depends=["asr/_activations.h"],
        extra_compile_args=EXACT + VECTORS,
        optional=True,
    ),
]

setup(ext_modules=KERNELS)
