/*
 * The steps of an LSTM layer over whole texts and their slopes, in bfloat16 for training on a CPU; lstm.py multiplies all
 * that does not wait for a step.
 *
 * A step is a multiplication of a few rows. It is quicker here than in a library as the weights are put in order once for
 * all steps, and as a step's activations and slopes are worked out while its sums are still at hand.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#include "_activations.h"

/* Numbers in a register; gates, in the order i, f, g, o; units that slopes are summed for at a time. */
enum { LANES = 16, GATES = 4, PANEL = 32, REGISTERS = 24 };

/* One layer's numbers; bfloat16 in uint16_t. */
typedef struct {
    int64_t frames, units;
    const uint16_t *weights; /* forwards as the blocks of lstm.py, backwards as its panels */
    const float *bias;       /* of all gates; forwards only */
    const uint16_t *slope;   /* for hidden, in its shape, from what it goes to; backwards only */
    uint16_t *gates;         /* shape = (rows, frames, GATES, units): sums of inputs, which become activations forwards */
    uint16_t *slopes;        /* for those sums, in the same shape; backwards only */
    uint16_t *hidden;        /* shape = (rows, frames, units); forwards only */
    float *cells;            /* in the same shape */
    float *carried;          /* shape = (rows, units): slopes for the cells, from the frame after; backwards only */
} Layer;

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,prefer-vector-width=512")

static ALWAYS_INLINE float widened(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* The nearest bfloat16, or the even one of two. */
static ALWAYS_INLINE uint16_t narrowed(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static ALWAYS_INLINE void widen(int count, const uint16_t *from, float *restrict to) {
    for (int i = 0; i < count; i++)
        to[i] = widened(from[i]);
}

static ALWAYS_INLINE void narrow(int count, const float *restrict from, uint16_t *to) {
    for (int i = 0; i < count; i++)
        to[i] = narrowed(from[i]);
}

/* sums += x @ weights, for `rows` rows of `inputs` numbers and `vectors` registers of outputs. */
static ALWAYS_INLINE void multiply(int rows, int vectors, const uint16_t *x, int64_t stride, const uint16_t *weights,
                                   int64_t inputs, __m512 sums[rows][vectors]) {
    for (int64_t k = 0; k < inputs; k += 2, weights += 2 * LANES * vectors) {
        __m512bh w[GATES];
        for (int v = 0; v < vectors; v++)
            w[v] = (__m512bh)_mm512_loadu_si512(weights + 2 * LANES * v);
        for (int r = 0; r < rows; r++) {
            int32_t pair;
            memcpy(&pair, x + r * stride + k, sizeof(pair));
            __m512bh repeated = (__m512bh)_mm512_set1_epi32(pair);
            for (int v = 0; v < vectors; v++)
                sums[r][v] = _mm512_dpbf16_ps(sums[r][v], repeated, w[v]);
        }
    }
}

/* Sums of two kinds, shape = (GATES, count), to activations, which replace the second, cells and hidden values. */
static __attribute__((noinline)) void activate(int64_t count, const float *restrict sum, float *restrict gate,
                                               float *restrict cell, float *restrict hidden) {
    for (int64_t i = 0; i < count; i++) {
        float in = sigmoid(sum[i] + gate[i]);
        float forget = sigmoid(sum[count + i] + gate[count + i]);
        float new = hyperbolic_tangent(sum[2 * count + i] + gate[2 * count + i]);
        float out = sigmoid(sum[3 * count + i] + gate[3 * count + i]);
        cell[i] = forget * cell[i] + in * new;
        hidden[i] = out * hyperbolic_tangent(cell[i]);
        gate[i] = in;
        gate[count + i] = forget;
        gate[2 * count + i] = new;
        gate[3 * count + i] = out;
    }
}

/* Frame t of `rows` rows from `row` on, in LANES units from `unit` on. */
static ALWAYS_INLINE void forward_tile(int rows, const Layer *l, int64_t row, int64_t t, int64_t unit) {
    int64_t at = (row * l->frames + t) * l->units, stride = l->frames * l->units;
    __m512 sums[REGISTERS / GATES][GATES];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < GATES; v++)
            sums[r][v] = _mm512_loadu_ps(l->bias + v * l->units + unit);
    if (t)
        multiply(rows, GATES, l->hidden + at - l->units, stride, l->weights + unit * GATES * l->units, l->units, sums);
    for (int r = 0; r < rows; r++) {
        int64_t here = at + r * stride + unit;
        uint16_t *gates = l->gates + GATES * (at + r * stride) + unit;
        float sum[GATES][LANES], gate[GATES][LANES], cell[LANES] = {0}, hidden[LANES];
        memcpy(sum, sums[r], sizeof(sum));
        for (int g = 0; g < GATES; g++)
            widen(LANES, gates + g * l->units, gate[g]);
        if (t)
            memcpy(cell, l->cells + here - l->units, sizeof(cell));
        activate(LANES, sum[0], gate[0], cell, hidden);
        memcpy(l->cells + here, cell, sizeof(cell));
        narrow(LANES, hidden, l->hidden + here);
        for (int g = 0; g < GATES; g++)
            narrow(LANES, gate[g], gates + g * l->units);
    }
}

/* The same for the slopes, in PANEL units. */
static ALWAYS_INLINE void backward_tile(int rows, const Layer *l, int64_t row, int64_t t, int64_t unit) {
    enum { VECTORS = PANEL / LANES };
    int64_t at = (row * l->frames + t) * l->units, stride = l->frames * l->units, inputs = GATES * l->units;
    __m512 sums[REGISTERS / VECTORS][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++)
            sums[r][v] = _mm512_setzero_ps();
    if (t + 1 < l->frames)
        multiply(rows, VECTORS, l->slopes + GATES * (at + l->units), GATES * stride, l->weights + unit * inputs, inputs,
                 sums);
    for (int r = 0; r < rows; r++) {
        int64_t here = at + r * stride + unit;
        const uint16_t *gates = l->gates + GATES * (at + r * stride) + unit;
        float sum[PANEL], gate[GATES][PANEL], slope[PANEL], cell[PANEL], before[PANEL] = {0}, carried[PANEL];
        memcpy(sum, sums[r], sizeof(sum));
        for (int g = 0; g < GATES; g++)
            widen(PANEL, gates + g * l->units, gate[g]);
        widen(PANEL, l->slope + here, slope);
        memcpy(cell, l->cells + here, sizeof(cell));
        if (t)
            memcpy(before, l->cells + here - l->units, sizeof(before));
        memcpy(carried, l->carried + (row + r) * l->units + unit, sizeof(carried));
        for (int i = 0; i < PANEL; i++) {
            float in = gate[0][i], forget = gate[1][i], new = gate[2][i], out = gate[3][i];
            float squashed = hyperbolic_tangent(cell[i]), hidden = sum[i] + slope[i];
            float kept = carried[i] + hidden * out * (1 - squashed * squashed);
            carried[i] = kept * forget;
            gate[0][i] = kept * new * in * (1 - in);
            gate[1][i] = kept * before[i] * forget * (1 - forget);
            gate[2][i] = kept * in * (1 - new * new);
            gate[3][i] = hidden * squashed * out * (1 - out);
        }
        memcpy(l->carried + (row + r) * l->units + unit, carried, sizeof(carried));
        for (int g = 0; g < GATES; g++)
            narrow(PANEL, gate[g], l->slopes + GATES * (at + r * stride) + unit + g * l->units);
    }
}

#define CASE(direction, n)                                                                                             \
    case n:                                                                                                            \
        direction##_tile(n, l, row, t, unit);                                                                          \
        break;

/* One frame of rows `first` to `last`, as many at a time as there are registers for, shared out evenly. */
static void forward_frame(const Layer *l, int64_t first, int64_t last, int64_t t) {
    int64_t most = REGISTERS / GATES, times = (last - first + most - 1) / most;
    for (int64_t unit = 0; unit < l->units; unit += LANES)
        for (int64_t i = 0, row = first, end; i < times; i++, row = end) {
            end = first + (last - first) * (i + 1) / times;
            switch (end - row) {
                CASE(forward, 1) CASE(forward, 2) CASE(forward, 3) CASE(forward, 4) CASE(forward, 5) CASE(forward, 6)
            }
        }
}

static void backward_frame(const Layer *l, int64_t first, int64_t last, int64_t t) {
    int64_t most = REGISTERS * LANES / PANEL, times = (last - first + most - 1) / most;
    for (int64_t unit = 0; unit < l->units; unit += PANEL)
        for (int64_t i = 0, row = first, end; i < times; i++, row = end) {
            end = first + (last - first) * (i + 1) / times;
            switch (end - row) {
                CASE(backward, 1) CASE(backward, 2) CASE(backward, 3) CASE(backward, 4) CASE(backward, 5)
                CASE(backward, 6) CASE(backward, 7) CASE(backward, 8) CASE(backward, 9) CASE(backward, 10)
                CASE(backward, 11) CASE(backward, 12)
            }
        }
}
#pragma GCC pop_options

static int supported(void) {
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#else
static void forward_frame(const Layer *l, int64_t first, int64_t last, int64_t t) {
    (void)l, (void)first, (void)last, (void)t;
}
static void backward_frame(const Layer *l, int64_t first, int64_t last, int64_t t) {
    (void)l, (void)first, (void)last, (void)t;
}
static int supported(void) { return 0; }
#endif

/* Whether the buffers hold what the sizes say; `numbers`: of (rows, frames, units). */
static int fit(const Layer *l, int64_t rows, int64_t first, int64_t last, const Py_buffer *weights,
               const Py_buffer *gates, const Py_buffer *hidden, const Py_buffer *cells) {
    int64_t numbers = rows * l->frames * l->units;
    return supported() && l->units > 0 && l->units % PANEL == 0 && 0 <= first && first <= last && last <= rows &&
           weights->len == GATES * l->units * l->units * 2 && gates->len == GATES * numbers * 2 &&
           hidden->len == numbers * 2 && cells->len == numbers * 4;
}

enum { WEIGHTS, VECTOR, STATES, ACTIVATIONS, CELLS, SLOPES, BUFFERS };

/* Both directions: VECTOR is the bias or what is carried, STATES hidden values or their slopes; SLOPES backwards only. */
static PyObject *run(PyObject *args, const char *format, int forwards) {
    Py_buffer b[BUFFERS] = {{0}};
    long long rows, frames, units, first, last;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, format, &rows, &frames, &units, &first, &last, &b[WEIGHTS], &b[VECTOR], &b[STATES],
                          &b[ACTIVATIONS], &b[CELLS], &b[SLOPES]))
        goto end;
    Layer layer = {
        .frames = frames, .units = units, .weights = b[WEIGHTS].buf, .gates = b[ACTIVATIONS].buf, .cells = b[CELLS].buf};
    if (!fit(&layer, rows, first, last, &b[WEIGHTS], &b[ACTIVATIONS], &b[STATES], &b[CELLS]) ||
        b[VECTOR].len != (forwards ? GATES : rows) * units * 4 || (!forwards && b[SLOPES].len != b[ACTIVATIONS].len)) {
        PyErr_SetString(PyExc_ValueError, "the arrays do not have the layer's sizes");
        goto end;
    }
    Py_BEGIN_ALLOW_THREADS
    if (forwards) {
        layer.bias = b[VECTOR].buf;
        layer.hidden = b[STATES].buf;
        for (int64_t t = 0; t < frames; t++)
            forward_frame(&layer, first, last, t);
    } else {
        layer.carried = b[VECTOR].buf;
        layer.slope = b[STATES].buf;
        layer.slopes = b[SLOPES].buf;
        for (int64_t t = frames - 1; t >= 0; t--)
            backward_frame(&layer, first, last, t);
    }
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
end:
    for (int i = 0; i < BUFFERS; i++)
        PyBuffer_Release(&b[i]);
    return result;
}

static PyObject *forward(PyObject *module, PyObject *args) {
    (void)module;
    return run(args, "(LLL)LLy*y*w*w*w*", 1);
}

static PyObject *backward(PyObject *module, PyObject *args) {
    (void)module;
    return run(args, "(LLL)LLy*w*y*y*y*w*", 0);
}

static PyObject *works(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyBool_FromLong(supported());
}

static PyMethodDef methods[] = {
    {"forward", forward, METH_VARARGS,
     "forward(sizes, first, last, weights, bias, hidden, gates, cells)\n\n"
     "Writes hidden values and cells of rows `first` to `last`, and turns their sums into activations."},
    {"backward", backward, METH_VARARGS,
     "backward(sizes, first, last, weights, carried, slope, gates, cells, slopes)\n\n"
     "Writes the slopes for the sums of rows `first` to `last`, whose activations `gates` are."},
    {"works", works, METH_NOARGS, "works()\n\nWhether the processor has the instructions."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_lstm_kernel", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__lstm_kernel(void) { return PyModule_Create(&definition); }
