/*
 * The encoder's arithmetic; _encoder_kernel.c includes this file once for each instruction set, with NAME(x) and LANES.
 *
 * Every output is one chain of roundings that does not depend on the instruction set, on the batch or on how many frames
 * a call brings: sums of bytes are exact, sums of floats have a fixed order, and nothing is contracted.
 */

typedef float NAME(Floats) __attribute__((vector_size(4 * LANES)));
typedef int32_t NAME(Ints) __attribute__((vector_size(4 * LANES)));
#define Floats NAME(Floats)
#define Ints NAME(Ints)
#define VECTORS (PANEL / LANES)

/* sum + the products of four unsigned bytes of x with four signed ones of w, in each lane. */
static inline Ints NAME(dot)(Ints sum, Ints x, Ints w) {
#if LANES == 16
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
#elif LANES == 8 && defined(__AVXVNNI__)
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)w);
#elif LANES == 8 /* weights have 7 bits, so that sums of two products fit in 16 */
    __m256i pairs = _mm256_maddubs_epi16((__m256i)x, (__m256i)w);
    return sum + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    const uint8_t *bytes = (const uint8_t *)&x;
    const int8_t *weights = (const int8_t *)&w;
    for (int i = 0; i < 4 * LANES; i++)
        sum[i / 4] += bytes[i] * weights[i];
    return sum;
#endif
}

/* `rows` rows of one panel of `product`. */
static ALWAYS_INLINE void NAME(tile)(int rows, const uint8_t *x, const float *scale, const Matrix *m, int64_t panel,
                                         const float *add, int64_t add_stride, float *out) {
    const Ints *w = (const Ints *)(m->weights + panel * PANEL * m->inputs);
    const Ints *start = (const Ints *)(m->start + panel * PANEL);
    const Floats *weight_scale = (const Floats *)(m->scale + panel * PANEL);
    Ints sum[ROWS][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++)
            sum[r][v] = start[v];
    for (int64_t k = 0; k < m->inputs; k += 4, w += VECTORS)
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + r * m->inputs + k, sizeof(four));
            Ints repeated = (Ints){0} + four;
            for (int v = 0; v < VECTORS; v++)
                sum[r][v] = NAME(dot)(sum[r][v], repeated, w[v]);
        }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) {
            int64_t column = panel * PANEL + v * LANES;
            Floats value = __builtin_convertvector(sum[r][v], Floats) * weight_scale[v] * scale[r];
            *(Floats *)(out + r * m->outputs + column) = value + *(const Floats *)(add + r * add_stride + column);
        }
}

/* out = x @ weights * scales + add; x: bytes as quantised, shape = (rows, inputs); add: rows, or one
 * if `add_stride` is 0; it may be `out`. */
static void NAME(product)(const uint8_t *x, const float *scale, int64_t rows, const Matrix *m, const float *add,
                          int64_t add_stride, float *out) {
    for (int64_t panel = 0; panel < m->outputs / PANEL; panel++) {
        int64_t r = 0;
        for (; r + ROWS <= rows; r += ROWS)
            NAME(tile)(ROWS, x + r * m->inputs, scale + r, m, panel, add + r * add_stride, add_stride,
                           out + r * m->outputs);
        for (; r < rows; r++)
            NAME(tile)(1, x + r * m->inputs, scale + r, m, panel, add + r * add_stride, add_stride,
                           out + r * m->outputs);
    }
}

/* Sixteen partial results to one, in a fixed order. */
static inline float NAME(total)(float *part) {
    for (int half = PARTS / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            part[i] += part[i + half];
    return part[0];
}

/* Rows of numbers to bytes around `zero`, with a scale for each row; where that is 0, no number is negative. */
static ALWAYS_INLINE void NAME(quantise_around)(int zero, const float *x, int64_t rows, int64_t width, uint8_t *bytes,
                                                float *scale) {
    float inverse = 1 / (zero ? LEVELS : 2 * LEVELS + 1);
    for (int64_t r = 0; r < rows; r++, x += width, bytes += width) {
        float part[PARTS] = {0}, most = 0;
        int64_t whole = width / PARTS * PARTS;
        for (int64_t i = 0; i < whole; i += PARTS)
            for (int p = 0; p < PARTS; p++) {
                float size = fabsf(x[i + p]);
                part[p] = size > part[p] ? size : part[p];
            }
        for (int64_t i = whole; i < width; i++)
            part[0] = fabsf(x[i]) > part[0] ? fabsf(x[i]) : part[0];
        for (int p = 0; p < PARTS; p++)
            most = part[p] > most ? part[p] : most;
        float step = scale[r] = most * inverse + TINY;
        for (int64_t i = 0; i < width; i++)
            bytes[i] = (uint8_t)(int32_t)(x[i] / step + (zero + 0.5f));
    }
}

/* The same around ZERO. */
static void NAME(quantise)(const float *x, int64_t rows, int64_t width, uint8_t *bytes, float *scale) {
    NAME(quantise_around)(ZERO, x, rows, width, bytes, scale);
}

/* ReLU of a convolution over `frames` outputs of each stream; one step of the kernel is `stride` numbers of x. */
static void NAME(convolve)(const Convolution *c, Room *room, int64_t streams, int64_t frames, const float *x,
                           int64_t stride, int64_t x_stream, float *out, int64_t out_stride, int64_t out_stream) {
    int64_t inputs = c->matrix.inputs;
    for (int64_t b = 0; b < streams; b++)
        for (int64_t t = 0, row = b * frames; t < frames; t++, row++)
            NAME(quantise_around)(c->zero, x + b * x_stream + t * stride, 1, inputs, room->bytes + row * inputs,
                                  room->scale + row);
    NAME(product)(room->bytes, room->scale, streams * frames, &c->matrix, c->bias, 0, room->gates);
    for (int64_t b = 0; b < streams; b++)
        for (int64_t t = 0; t < frames; t++) {
            const float *from = room->gates + (b * frames + t) * c->matrix.outputs;
            float *to = out + b * out_stream + t * out_stride;
            for (int64_t i = 0; i < c->outputs; i++)
                to[i] = from[i] > 0 ? from[i] : 0;
        }
}

/* Layer normalisation of rows. */
static void NAME(normalise)(const float *x, int64_t rows, int64_t width, const float *gain, const float *bias, float *out) {
    for (int64_t r = 0; r < rows; r++, x += width, out += width) {
        float sum[PARTS] = {0}, squares[PARTS] = {0};
        for (int64_t i = 0; i < width; i += PARTS)
            for (int p = 0; p < PARTS; p++)
                sum[p] += x[i + p];
        float mean = NAME(total)(sum) / (float)width;
        for (int64_t i = 0; i < width; i += PARTS)
            for (int p = 0; p < PARTS; p++)
                squares[p] += (x[i + p] - mean) * (x[i + p] - mean);
        float deviation = sqrtf(NAME(total)(squares) / (float)width + EPSILON);
        for (int64_t i = 0; i < width; i++)
            out[i] = (x[i] - mean) / deviation * gain[i] + bias[i];
    }
}

/* Gates in the order i, o, f, c to the next cells and hidden values of one stream, which are added to x. */
static void NAME(cells)(const float *restrict gates, int64_t width, float *restrict cell, float *restrict hidden,
                        float *restrict x) {
    for (int64_t i = 0; i < width; i++) {
        float new = sigmoid(gates[i]) * hyperbolic_tangent(gates[3 * width + i]);
        float c = sigmoid(gates[2 * width + i]) * cell[i] + new;
        float h = sigmoid(gates[width + i]) * hyperbolic_tangent(c);
        cell[i] = c;
        hidden[i] = h;
        x[i] += h;
    }
}

/* A block's rows x, shape = (frames, streams, width), by way of its cells; hidden, cell: shape = (streams, width). */
static void NAME(recur)(const Block *block, const Sizes *s, Room *room, float *x, float *hidden, float *cell) {
    int64_t rows = s->frames * s->streams, width = s->width, gates = 4 * width;
    NAME(normalise)(x, rows, width, block->gain, block->shift, room->normalised);
    NAME(quantise)(room->normalised, rows, width, room->bytes, room->scale);
    NAME(product)(room->bytes, room->scale, rows, &block->input, block->bias, 0, room->gates);
    for (int64_t t = 0; t < s->frames; t++) {
        float *now = room->gates + t * s->streams * gates;
        NAME(quantise)(hidden, s->streams, width, room->bytes, room->scale);
        NAME(product)(room->bytes, room->scale, s->streams, &block->recurrent, now, gates, now);
        for (int64_t b = 0; b < s->streams; b++)
            NAME(cells)(now + b * gates, width, cell + b * width, hidden + b * width,
                        x + (t * s->streams + b) * width);
    }
}

/* The row convolution: x, shape = (lookahead + frames, streams, width), to its first `frames` rows. */
static void NAME(look_ahead)(const Weights *w, const Sizes *s, float *x) {
    int64_t row = s->streams * s->width;
    for (int64_t at = 0; at < s->frames * row; at += s->width)
        for (int64_t i = 0; i < s->width; i++) {
            float sum = w->ahead_bias[i];
            for (int64_t k = 0; k <= s->lookahead; k++)
                sum += w->ahead[k * s->width + i] * x[at + k * row + i];
            x[at + i] = sum;
        }
}

/* Logits to log-probabilities. */
static void NAME(log_softmax)(const float *logits, int64_t tokens, float *out) {
    float most = logits[0], sum = 0;
    for (int64_t i = 1; i < tokens; i++)
        most = logits[i] > most ? logits[i] : most;
    for (int64_t i = 0; i < tokens; i++)
        out[i] = exponential(logits[i] - most);
    for (int64_t i = 0; i < tokens; i++)
        sum += out[i];
    float log_sum = logf(sum);
    for (int64_t i = 0; i < tokens; i++)
        out[i] = logits[i] - most - log_sum;
}

/* Features to the rows of the first block, shape = (frames, streams, width). */
static void NAME(subsample)(const Weights *w, const Sizes *s, Room *room, const float *features, const float *state,
                            float *next, float *x) {
    int64_t inputs = SUBSAMPLING * s->frames, mels = s->mels, channels = s->channels;
    int64_t first = (CACHED + inputs) * mels, second = (CACHED + inputs / 2) * channels;
    for (int64_t b = 0; b < s->streams; b++) {
        float *frames = room->first + b * first;
        memcpy(frames, state + b * s->state, CACHED * mels * sizeof(float));
        for (int64_t t = 0; t < inputs; t++)
            for (int64_t i = 0; i < mels; i++)
                frames[(CACHED + t) * mels + i] = (features[(b * inputs + t) * mels + i] - w->mean[i]) / w->deviation[i];
        memcpy(room->second + b * second, state + b * s->state + CACHED * mels, CACHED * channels * sizeof(float));
    }
    NAME(convolve)(&w->conv1, room, s->streams, inputs / 2, room->first, 2 * mels, first, room->second + CACHED * channels,
                   channels, second);
    NAME(convolve)(&w->conv2, room, s->streams, s->frames, room->second, 2 * channels, second, x, s->streams * s->width,
                   s->width);
    for (int64_t b = 0; b < s->streams; b++) {
        float *to = next + b * s->state;
        memcpy(to, room->first + b * first + inputs * mels, CACHED * mels * sizeof(float));
        memcpy(to + CACHED * mels, room->second + b * second + inputs / 2 * channels, CACHED * channels * sizeof(float));
    }
}

/* Rows of each stream's state, `at` numbers into it, from or to shape = (rows, streams, width). */
static void NAME(gather)(const Sizes *s, const float *state, int64_t at, int64_t rows, float *to) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t b = 0; b < s->streams; b++)
            memcpy(to + (r * s->streams + b) * s->width, state + b * s->state + at + r * s->width,
                   (size_t)s->width * sizeof(float));
}

static void NAME(scatter)(const Sizes *s, const float *from, int64_t at, int64_t rows, float *state) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t b = 0; b < s->streams; b++)
            memcpy(state + b * s->state + at + r * s->width, from + (r * s->streams + b) * s->width,
                   (size_t)s->width * sizeof(float));
}

/* features, shape = (streams, 4 * frames, mels), to log_probs, shape = (streams, frames, tokens), and the next state. */
static void NAME(encode)(const Weights *w, const Sizes *s, Room *room, const float *features, const float *state,
                         float *log_probs, float *next) {
    int64_t row = s->streams * s->width, ahead = CACHED * (s->mels + s->channels);
    int64_t hidden = ahead + s->lookahead * s->width, cell = hidden + s->layers * s->width;
    float *x = room->rows + s->lookahead * row;
    NAME(subsample)(w, s, room, features, state, next, x);
    for (int64_t i = 0; i < s->layers; i++) {
        if (i == s->layers / 2 && s->lookahead) {
            x = room->rows;
            NAME(gather)(s, state, ahead, s->lookahead, x);
            NAME(scatter)(s, x + s->frames * row, ahead, s->lookahead, next);
            NAME(look_ahead)(w, s, x);
        }
        NAME(gather)(s, state, hidden + i * s->width, 1, room->hidden);
        NAME(gather)(s, state, cell + i * s->width, 1, room->cell);
        NAME(recur)(&w->blocks[i], s, room, x, room->hidden, room->cell);
        NAME(scatter)(s, room->hidden, hidden + i * s->width, 1, next);
        NAME(scatter)(s, room->cell, cell + i * s->width, 1, next);
    }
    int64_t rows = s->frames * s->streams;
    NAME(normalise)(x, rows, s->width, w->gain, w->shift, room->normalised);
    NAME(quantise)(room->normalised, rows, s->width, room->bytes, room->scale);
    NAME(product)(room->bytes, room->scale, rows, &w->output, w->output_bias, 0, room->gates);
    for (int64_t t = 0; t < s->frames; t++)
        for (int64_t b = 0; b < s->streams; b++)
            NAME(log_softmax)(room->gates + (t * s->streams + b) * w->output.outputs, s->tokens,
                              log_probs + (b * s->frames + t) * s->tokens);
}

#undef Floats
#undef Ints
#undef VECTORS
