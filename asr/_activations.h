/* Activations of the kernels: each is one chain of roundings, which loops of any instruction set turn into vectors. */
#include <stdint.h>
#include <string.h>

#define ALWAYS_INLINE inline __attribute__((always_inline))

/* e to the power of x, for x within -80 and 80: a power of two times a Taylor series that is good to 1e-8. */
static ALWAYS_INLINE float exponential(float x) {
    x = x < 80 ? x : 80;
    x = x > -80 ? x : -80;
    float shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the sum's last bits are the nearest whole number */
    float whole = shifted - 12582912.0f;
    float r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f; /* ln 2 in two parts, the first one exact */
    float series = 1.0f / 5040;
    series = series * r + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    int32_t exponent = ((int32_t)whole + 127) << 23;
    float power;
    memcpy(&power, &exponent, sizeof(power));
    return series * power;
}

static ALWAYS_INLINE float sigmoid(float x) { return 1 / (1 + exponential(-x)); }

static ALWAYS_INLINE float hyperbolic_tangent(float x) { return 1 - 2 / (1 + exponential(2 * x)); }
