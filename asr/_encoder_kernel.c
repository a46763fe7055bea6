/*
 * The streaming encoder of asr.encoder in compiled code, from the weights of its graph in ONNX: the same bytes, scales and
 * operations as asr/training/rows.py writes for ONNX Runtime. encoder_kernel.py hands over the tables.
 *
 * It is quicker because a layer runs over all frames of a call before the next, so that its recurrent weights stay in the
 * cache of the core, and because nothing is allocated, copied or scheduled between two operations.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "_activations.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define X86 1
#include <cpuid.h>
#include <immintrin.h>
#endif

/* As in asr/encoder.py and asr/training/rows.py. */
enum { SUBSAMPLING = 4, KERNEL = 5, CACHED = 3, ZERO = 128 };
static const float LEVELS = 127, TINY = 1e-9f, EPSILON = 1e-5f;
/* Outputs whose weights are stored together, as in encoder_kernel.py; partial sums of a row. */
enum { PANEL = 64, PARTS = 16, ALIGNMENT = 64 };

typedef struct {
    const int8_t *weights; /* shape = (outputs / PANEL, inputs / 4, PANEL, 4) */
    const int32_t *start;  /* of each output's sum: what ZERO adds, taken away */
    const float *scale;    /* of each output */
    int64_t inputs, outputs;
} Matrix;

typedef struct {
    Matrix matrix; /* inputs: of all frames of the kernel */
    const float *bias;
    int64_t outputs;
    int zero; /* as a byte of its inputs */
} Convolution;

typedef struct {
    const float *gain, *shift, *bias;
    Matrix input, recurrent;
} Block;

typedef struct {
    const float *mean, *deviation, *ahead, *ahead_bias, *gain, *shift, *output_bias;
    Convolution conv1, conv2;
    Block *blocks;
    Matrix output;
} Weights;

/* frames: emissions of a call; state: numbers of one stream's. */
typedef struct {
    int64_t mels, channels, width, layers, lookahead, tokens, streams, frames, state;
} Sizes;

/* What a call needs while it runs. */
typedef struct {
    float *first, *second, *rows, *normalised, *gates, *hidden, *cell, *scale;
    uint8_t *bytes;
} Room;

typedef void Encode(const Weights *, const Sizes *, Room *, const float *, const float *, float *, float *);

/* Numbers in a register, and rows of x whose sums fit in the registers. */
#define NAME(x) x##_plain
#define LANES 4
#define ROWS 1
#include "_encoder_path.h"
#undef NAME
#undef LANES

#ifdef X86
#define LANES 8
#define NAME(x) x##_avx2
#pragma GCC push_options
#pragma GCC target("avx2")
#include "_encoder_path.h"
#pragma GCC pop_options
#undef NAME

#define NAME(x) x##_avxvnni
#pragma GCC push_options
#pragma GCC target("avx2,avxvnni")
#include "_encoder_path.h"
#pragma GCC pop_options
#undef NAME
#undef LANES
#undef ROWS

#define LANES 16
#define ROWS 6
#define NAME(x) x##_avx512vnni
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512")
#include "_encoder_path.h"
#pragma GCC pop_options

static int has_avx512vnni(void) {
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
static int has_avxvnni(void) {
    unsigned a, b, c, d;
    return __builtin_cpu_supports("avx2") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & bit_AVXVNNI);
}
static int has_avx2(void) { return __builtin_cpu_supports("avx2"); }
#endif

static int always(void) { return 1; }

/* Best first. */
static const struct {
    const char *name;
    int (*works)(void);
    Encode *encode;
} PATHS[] = {
#ifdef X86
    {"avx512vnni", has_avx512vnni, encode_avx512vnni},
    {"avxvnni", has_avxvnni, encode_avxvnni},
    {"avx2", has_avx2, encode_avx2},
#endif
    {"plain", always, encode_plain},
};
enum { PATH_COUNT = sizeof(PATHS) / sizeof(PATHS[0]) };

/* What is left of a table. */
typedef struct {
    const char *at;
    Py_ssize_t left;
} Table;

/* The next `count` numbers of 4 bytes or, of int8 weights, 1; every part of a table begins at a multiple of 64 bytes. */
static const void *take(Table *table, int64_t count, int64_t bytes) {
    int64_t size = (count * bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    const void *part = table->at;
    table->left -= size;
    if (table->left >= 0)
        table->at += size;
    return part;
}

static const float *floats(Table *table, int64_t count) { return take(table, count, sizeof(float)); }

static Matrix matrix(Table *table, int64_t inputs, int64_t outputs) {
    Matrix m = {.inputs = inputs, .outputs = (outputs + PANEL - 1) / PANEL * PANEL};
    m.weights = take(table, inputs * m.outputs, 1);
    m.start = take(table, m.outputs, sizeof(int32_t));
    m.scale = floats(table, m.outputs);
    return m;
}

static Convolution convolution(Table *table, int64_t inputs, int64_t outputs, int zero) {
    Convolution c = {.matrix = matrix(table, KERNEL * inputs, outputs), .outputs = outputs, .zero = zero};
    c.bias = floats(table, c.matrix.outputs);
    return c;
}

/* The parts of a table, in the order in which encoder_kernel.py has written them; 0 where it has another length. */
static int parse(Table table, const Sizes *s, Block *blocks, Weights *w) {
    w->mean = floats(&table, s->mels);
    w->deviation = floats(&table, s->mels);
    w->conv1 = convolution(&table, s->mels, s->channels, ZERO);
    w->conv2 = convolution(&table, s->channels, s->width, 0); /* of what a ReLU leaves */
    if (s->lookahead) {
        w->ahead = floats(&table, (s->lookahead + 1) * s->width);
        w->ahead_bias = floats(&table, s->width);
    }
    w->blocks = blocks;
    for (int64_t i = 0; i < s->layers; i++) {
        blocks[i].gain = floats(&table, s->width);
        blocks[i].shift = floats(&table, s->width);
        blocks[i].bias = floats(&table, 4 * s->width);
        blocks[i].input = matrix(&table, s->width, 4 * s->width);
        blocks[i].recurrent = matrix(&table, s->width, 4 * s->width);
    }
    w->gain = floats(&table, s->width);
    w->shift = floats(&table, s->width);
    w->output = matrix(&table, s->width, s->tokens);
    w->output_bias = floats(&table, w->output.outputs);
    return table.left == 0;
}

/* Reserves `count` numbers of a size; returns where they begin among the bytes reserved. */
static size_t reserve(size_t *bytes, int64_t count, size_t size) {
    size_t begin = *bytes;
    *bytes += ((size_t)count * size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return begin;
}

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* Memory for a call; NULL where there is none. The parts of `room` are in it. */
static void *make_room(const Sizes *s, const Weights *w, Room *room) {
    int64_t rows = s->frames * s->streams, inputs = SUBSAMPLING * s->frames;
    int64_t widest = most(most(4 * s->width, w->output.outputs), most(2 * w->conv1.matrix.outputs, w->conv2.matrix.outputs));
    int64_t longest = most(s->width, most(2 * w->conv1.matrix.inputs, w->conv2.matrix.inputs));
    size_t bytes = 0, f = sizeof(float);
    size_t first = reserve(&bytes, s->streams * (CACHED + inputs) * s->mels, f);
    size_t second = reserve(&bytes, s->streams * (CACHED + inputs / 2) * s->channels, f);
    size_t all = reserve(&bytes, (s->lookahead * s->streams + rows) * s->width, f);
    size_t normalised = reserve(&bytes, rows * s->width, f), gates = reserve(&bytes, rows * widest, f);
    size_t hidden = reserve(&bytes, s->streams * s->width, f), cell = reserve(&bytes, s->streams * s->width, f);
    size_t scale = reserve(&bytes, 2 * rows, f), quantised = reserve(&bytes, rows * longest, 1);
    char *memory = aligned_alloc(ALIGNMENT, bytes);
    if (memory)
        *room = (Room){
            .first = (float *)(memory + first),
            .second = (float *)(memory + second),
            .rows = (float *)(memory + all),
            .normalised = (float *)(memory + normalised),
            .gates = (float *)(memory + gates),
            .hidden = (float *)(memory + hidden),
            .cell = (float *)(memory + cell),
            .scale = (float *)(memory + scale),
            .bytes = (uint8_t *)(memory + quantised),
        };
    return memory;
}

enum { TABLE, FEATURES, STATE, LOG_PROBS, NEXT, BUFFERS };

/* Whether the buffers hold what the sizes say. */
static int fit(const Sizes *s, const Py_buffer *b) {
    int64_t f = sizeof(float), emissions = s->streams * s->frames;
    return (uintptr_t)b[TABLE].buf % ALIGNMENT == 0 && b[FEATURES].len == emissions * SUBSAMPLING * s->mels * f &&
           b[STATE].len == s->streams * s->state * f && b[LOG_PROBS].len == emissions * s->tokens * f &&
           b[NEXT].len == s->streams * s->state * f;
}

static PyObject *encode(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer b[BUFFERS] = {{0}};
    long long mels, channels, width, layers, lookahead, tokens, streams, frames;
    int path;
    PyObject *result = NULL;
    Block *blocks = NULL;
    void *memory = NULL;
    if (!PyArg_ParseTuple(args, "i(LLLLLL)LLy*y*y*w*w*", &path, &mels, &channels, &width, &layers, &lookahead, &tokens,
                          &streams, &frames, &b[TABLE], &b[FEATURES], &b[STATE], &b[LOG_PROBS], &b[NEXT]))
        goto end;
    Sizes s = {mels, channels, width, layers, lookahead, tokens, streams, frames, 0};
    s.state = CACHED * (mels + channels) + (lookahead + 2 * layers) * width;
    Weights w = {0};
    Room room;
    blocks = malloc((size_t)layers * sizeof(Block));
    if (!blocks) {
        PyErr_NoMemory();
        goto end;
    }
    if (path < 0 || path >= PATH_COUNT || !PATHS[path].works() || !fit(&s, b) ||
        !parse((Table){b[TABLE].buf, b[TABLE].len}, &s, blocks, &w)) {
        PyErr_SetString(PyExc_ValueError, "the arrays do not have the encoder's sizes");
        goto end;
    }
    memory = make_room(&s, &w, &room);
    if (!memory) {
        PyErr_NoMemory();
        goto end;
    }
    Py_BEGIN_ALLOW_THREADS
    PATHS[path].encode(&w, &s, &room, b[FEATURES].buf, b[STATE].buf, b[LOG_PROBS].buf, b[NEXT].buf);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
end:
    free(memory);
    free(blocks);
    for (int i = 0; i < BUFFERS; i++)
        PyBuffer_Release(&b[i]);
    return result;
}

static PyObject *paths(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    PyObject *names = PyDict_New();
    for (int i = 0; names && i < PATH_COUNT; i++)
        if (PATHS[i].works()) {
            PyObject *number = PyLong_FromLong(i);
            if (!number || PyDict_SetItemString(names, PATHS[i].name, number) < 0)
                Py_CLEAR(names);
            Py_XDECREF(number);
        }
    return names;
}

static PyMethodDef methods[] = {
    {"encode", encode, METH_VARARGS,
     "encode(path, sizes, streams, frames, table, features, state, log_probs, next)\n\n"
     "Writes the log-probabilities and the next state of some streams."},
    {"paths", paths, METH_NOARGS, "paths()\n\nNames and numbers of the instruction sets that work here, best first."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_encoder_kernel", NULL, 0, methods, NULL, NULL, NULL,
                                        NULL};

PyMODINIT_FUNC PyInit__encoder_kernel(void) { return PyModule_Create(&definition); }
