/* A Llama's decode step on a CPU: every layer of it, for rows of any length, in one call.

   Compiled and called by generator/inference/cpu_kernels.py, which lays out the weights; the same arithmetic in
   PyTorch is generator/gpt.py. Beside float32 weights everything is float32; beside rounded ones
   what enters a product is bfloat16, cached keys and values too, and sums are float32.
   Each number is computed by one thread in one order, whatever the number of threads and whatever
   other rows are there: a row's logits do not depend on them, to the bit. */

#include <stdint.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#define LANES 16        /* floats of a vector; compilers split it where the processor has less */
#define OUTPUTS 32      /* a weight lies as [out / 32][in][32], or with 2 or 4 inputs in the end */
#define ROWS 8          /* rows that share one reading of a weight */

typedef float vf __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(32), aligned(2), may_alias));

#define INLINE static inline __attribute__((always_inline))

enum { FLOAT32, BFLOAT16, INT8 };

typedef struct {
    int32_t layers, width, heads, head_width, head_padded, hidden, vocabulary, weights;
    int32_t slots, max_len, threads;
    float epsilon;
} Sizes;

typedef struct {
    const void *values;
    const float *scales; /* of each output, for 8 bits only */
} Matrix;

typedef struct {
    const float *norm_attention, *norm_mlp;
    Matrix qkv, out, gate_up, down;
} Layer;

typedef struct {
    const Layer *layers;
    const float *norm;
    Matrix head;
    const float *cosines, *sines; /* [position][head_width / 2] */
} Weights;

INLINE vf splat(float x) { return (vf){} + x; }

INLINE float sum_of(vf x) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}

/* e^x to 2 units in the last place, for x in [-87, 0]; 0 under that */
INLINE vf exp_of(vf x) {
    vi tiny = x < splat(-87.0f);
    x = (vf)(((vi)x & ~tiny));
    vf n = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23 rounds to a whole number */
    vi power = (vi)n - 0x4B400000;
    n -= 12582912.0f;
    vf f = x - n * 0.693359375f + n * 2.12194440e-4f;
    vf y = splat(1.9875691500e-4f);
    y = y * f + 1.3981999507e-3f;
    y = y * f + 8.3334519073e-3f;
    y = y * f + 4.1665795894e-2f;
    y = y * f + 1.6666665459e-1f;
    y = y * f + 5.0000001201e-1f;
    y = y * f * f + f + 1.0f;
    vi bits = (power + 127) << 23;
    y *= (vf)bits;
    return (vf)((vi)y & ~tiny);
}

INLINE uint16_t to_bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

INLINE vf from_bfloat16(vh x) { return (vf)(__builtin_convertvector(x, vu) << 16); }

/* Activations and cache entries: bfloat16 or float32. */
INLINE void store(void *memory, int64_t at, float value, int rounds) {
    if (rounds) ((uint16_t *)memory)[at] = to_bfloat16(value);
    else ((float *)memory)[at] = value;
}

INLINE vf load(const void *memory, int64_t at, int rounds) {
    if (rounds) return from_bfloat16(*(const vh *)((const uint16_t *)memory + at));
    return *(const vf *)((const float *)memory + at);
}

/* sum + w · x for pairs of bfloat16, one x for all lanes */
INLINE vf dot(vf sum, vu w, uint32_t x) {
#ifdef __AVX512BF16__
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32((int)x));
#else
    vu pair = (vu){} + x;
    sum += (vf)(w << 16) * (vf)(pair << 16);
    return sum + (vf)(w & 0xFFFF0000u) * (vf)(pair & 0xFFFF0000u);
#endif
}

/* Two of four 8-bit numbers of each lane, as pairs of bfloat16, which holds them exactly. */
INLINE vu pair_of(vi w, int second) {
    vf low = __builtin_convertvector((w << (second ? 8 : 24)) >> 24, vf);
    vf high = __builtin_convertvector((w << (second ? 0 : 16)) >> 24, vf);
    return ((vu)low >> 16) | ((vu)high & 0xFFFF0000u);
}

/* By itself, so that the product is rounded alike for any number of rows. */
static __attribute__((noinline)) void rescale(vf *sums, int rows, const float *scales) {
    for (int r = 0; r < rows; r++) {
        sums[2 * r] *= *(const vf *)scales;
        sums[2 * r + 1] *= *(const vf *)(scales + LANES);
    }
}

/* y[rows][32] (+)= x[rows][in] · w[in][32] */
INLINE void tile(int rows, int kind, const char *x, int in, const char *w, const float *scales,
                 float *y, int stride, int adds) {
    vf sum[ROWS][2];
    const float *exact = (const float *)x;
    const uint32_t *pairs = (const uint32_t *)x;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = splat(0);
    if (kind == FLOAT32) {
        for (int k = 0; k < in; k++, w += 4 * OUTPUTS) {
            vf a = *(const vf *)w, b = *(const vf *)(w + 64);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                sum[r][0] += a * exact[r * in + k];
                sum[r][1] += b * exact[r * in + k];
            }
        }
    } else if (kind == BFLOAT16) {
        for (int k = 0; k < in / 2; k++, w += 4 * OUTPUTS) {
            vu a = *(const vu *)w, b = *(const vu *)(w + 64);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                sum[r][0] = dot(sum[r][0], a, pairs[r * (in / 2) + k]);
                sum[r][1] = dot(sum[r][1], b, pairs[r * (in / 2) + k]);
            }
        }
    } else {
        for (int k = 0; k < in / 2; k += 2, w += 4 * OUTPUTS) {
            vi a = *(const vi *)w, b = *(const vi *)(w + 64);
            vu a0 = pair_of(a, 0), a1 = pair_of(a, 1), b0 = pair_of(b, 0), b1 = pair_of(b, 1);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                uint32_t first = pairs[r * (in / 2) + k], second = pairs[r * (in / 2) + k + 1];
                sum[r][0] = dot(sum[r][0], a0, first);
                sum[r][1] = dot(sum[r][1], b0, first);
                sum[r][0] = dot(sum[r][0], a1, second);
                sum[r][1] = dot(sum[r][1], b1, second);
            }
        }
    }
    vf total[2 * ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) total[2 * r] = sum[r][0], total[2 * r + 1] = sum[r][1];
    if (kind == INT8) rescale(total, rows, scales);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        vf *out = (vf *)(y + (int64_t)r * stride);
        out[0] = adds ? out[0] + total[2 * r] : total[2 * r] + 0;
        out[1] = adds ? out[1] + total[2 * r + 1] : total[2 * r + 1] + 0;
    }
}

/* All rows of one block of 32 outputs. */
INLINE void tiles(int kind, const char *x, int rows, int in, const char *w, const float *scales,
                  float *y, int stride, int adds) {
    for (int r = 0; r < rows; r += ROWS) {
        const char *from = x + (int64_t)r * in * (kind == FLOAT32 ? 4 : 2);
        float *to = y + (int64_t)r * stride;
        switch (rows - r) {
#define CASE(n) case n: tile(n, kind, from, in, w, scales, to, stride, adds); break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7)
            default: tile(ROWS, kind, from, in, w, scales, to, stride, adds);
        }
    }
}

static void tiles_float32(const char *x, int rows, int in, const char *w, const float *scales,
                          float *y, int stride, int adds) {
    tiles(FLOAT32, x, rows, in, w, scales, y, stride, adds);
}
static void tiles_bfloat16(const char *x, int rows, int in, const char *w, const float *scales,
                           float *y, int stride, int adds) {
    tiles(BFLOAT16, x, rows, in, w, scales, y, stride, adds);
}
static void tiles_int8(const char *x, int rows, int in, const char *w, const float *scales,
                       float *y, int stride, int adds) {
    tiles(INT8, x, rows, in, w, scales, y, stride, adds);
}

/* y[rows][out] (+)= x[rows][in] · w; called by all threads together */
static void linear(const Sizes *s, const void *x, int rows, int in, Matrix w, int out, float *y,
                   int adds) {
    static const int64_t bytes[] = {4, 2, 1};
    int64_t block = (int64_t)in * OUTPUTS * bytes[s->weights];
#pragma omp for schedule(static)
    for (int b = 0; b < out / OUTPUTS; b++) {
        const char *values = (const char *)w.values + b * block;
        const float *scales = w.scales ? w.scales + b * OUTPUTS : 0;
        float *to = y + b * OUTPUTS;
        if (s->weights == BFLOAT16) tiles_bfloat16(x, rows, in, values, scales, to, out, adds);
        else if (s->weights == INT8) tiles_int8(x, rows, in, values, scales, to, out, adds);
        else tiles_float32(x, rows, in, values, scales, to, out, adds);
    }
}

static void norm(const Sizes *s, const float *x, int rows, const float *weight, void *y) {
    int width = s->width, rounds = s->weights != FLOAT32;
#pragma omp for schedule(static)
    for (int r = 0; r < rows; r++) {
        const float *from = x + (int64_t)r * width;
        vf sums = splat(0);
        int i = 0;
        for (; i + LANES <= width; i += LANES) sums += *(const vf *)(from + i) * *(const vf *)(from + i);
        float total = sum_of(sums);
        for (; i < width; i++) total += from[i] * from[i];
        float scale = 1.0f / __builtin_sqrtf(total / width + s->epsilon);
        int64_t to = (int64_t)r * width;
        for (i = 0; i < width; i++) store(y, to + i, from[i] * scale * weight[i], rounds);
    }
}

/* A key lies transposed, [place / 16][head_padded][16]; a value as [place][head_padded]. */
INLINE int64_t head_of(const Sizes *s, int layer, int64_t slot, int head) {
    int64_t size = (int64_t)s->max_len * s->head_padded;
    return (((int64_t)layer * s->slots + slot) * s->heads + head) * size;
}

/* Turn q and k by their position, put k and v away. */
static void remember(const Sizes *s, const Weights *w, int layer, float *qkv, int stride, int rows,
                     const int64_t *slots, const int64_t *positions, void *keys, void *values) {
    int half = s->head_width / 2;
#pragma omp for schedule(static) collapse(2)
    for (int r = 0; r < rows; r++) {
        for (int h = 0; h < s->heads; h++) {
            float *q = qkv + (int64_t)r * stride + h * s->head_width;
            float *k = q + s->width, *v = k + s->width;
            const float *cosine = w->cosines + positions[r] * half;
            const float *sine = w->sines + positions[r] * half;
            for (int i = 0; i < half; i++) {
                float a = q[i], b = q[i + half], c = k[i], d = k[i + half];
                q[i] = a * cosine[i] - b * sine[i];
                q[i + half] = b * cosine[i] + a * sine[i];
                k[i] = c * cosine[i] - d * sine[i];
                k[i + half] = d * cosine[i] + c * sine[i];
            }
            int64_t at = head_of(s, layer, slots[r], h), place = positions[r];
            int64_t key = at + place / LANES * LANES * s->head_padded + place % LANES;
            int64_t value = at + place * s->head_padded;
            for (int i = 0; i < s->head_padded; i++) {
                int inside = i < s->head_width;
                store(keys, key + i * LANES, inside ? k[i] : 0, s->weights != FLOAT32);
                store(values, value + i, inside ? v[i] : 0, s->weights != FLOAT32);
            }
        }
    }
}

#define MAX_HEAD 16 /* vectors of the widest head */

/* One row and head: q against `count` positions. */
INLINE void look(int rounds, int vectors, const float *q, int head_width, const void *keys,
                 const void *values, int64_t at, int count, float *scores, void *out, int64_t to) {
    static const vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    int padded = vectors * LANES, blocks = (count + LANES - 1) / LANES;
    float scale = 1.0f / __builtin_sqrtf(head_width);
    vf most = splat(-3e38f);
    for (int b = 0; b < blocks; b++) {
        int64_t from = at + (int64_t)b * LANES * padded;
        vf even = splat(0), odd = splat(0);
        int i = 0;
        for (; i + 1 < head_width; i += 2) {
            even += load(keys, from + i * LANES, rounds) * q[i];
            odd += load(keys, from + (i + 1) * LANES, rounds) * q[i + 1];
        }
        vf score = (even + odd) * scale;
        vi inside = lane < (vi){} + (count - b * LANES);
        score = (vf)(((vi)score & inside) | ((vi)splat(-3e38f) & ~inside));
        *(vf *)(scores + b * LANES) = score;
        vi more = score > most;
        most = (vf)(((vi)score & more) | ((vi)most & ~more));
    }
    float highest = most[0];
    for (int i = 1; i < LANES; i++) highest = most[i] > highest ? most[i] : highest;
    vf totals = splat(0);
    for (int b = 0; b < blocks; b++) {
        vf p = exp_of(*(vf *)(scores + b * LANES) - highest);
        *(vf *)(scores + b * LANES) = p;
        totals += p;
    }
    float rest = 1.0f / sum_of(totals);
    vf sums[MAX_HEAD];
    for (int i = 0; i < vectors; i++) sums[i] = splat(0);
    for (int p = 0; p < count; p++) {
        int64_t from = at + (int64_t)p * padded;
        for (int i = 0; i < vectors; i++) sums[i] += load(values, from + i * LANES, rounds) * scores[p];
    }
    for (int i = 0; i < head_width; i++) store(out, to + i, sums[i / LANES][i % LANES] * rest, rounds);
}

static void attend(const Sizes *s, int layer, const float *qkv, int stride, int rows,
                   const int64_t *slots, const int64_t *positions, const void *keys,
                   const void *values, float *scores, void *out) {
    int rounds = s->weights != FLOAT32, vectors = s->head_padded / LANES, width = s->head_width;
#pragma omp for schedule(dynamic, 1) collapse(2)
    for (int r = 0; r < rows; r++) {
        for (int h = 0; h < s->heads; h++) {
            const float *q = qkv + (int64_t)r * stride + h * width;
            int64_t at = head_of(s, layer, slots[r], h), to = (int64_t)r * s->width + h * width;
            int count = (int)positions[r] + 1;
#define LOOK(rounds, vectors) look(rounds, vectors, q, width, keys, values, at, count, scores, out, to)
            if (rounds && vectors == 4) LOOK(1, 4);
            else if (rounds) LOOK(1, vectors);
            else LOOK(0, vectors);
        }
    }
}

/* silu(gate) · up */
static void gate(const float *gate_up, int rows, int hidden, void *out, int rounds) {
    int blocks = hidden / OUTPUTS;
#pragma omp for schedule(static)
    for (int task = 0; task < rows * blocks; task++) {
        int64_t r = task / blocks, i = (int64_t)(task % blocks) * OUTPUTS;
        for (int half = 0; half < OUTPUTS; half += LANES) {
            vf g = *(const vf *)(gate_up + r * 2 * hidden + i + half);
            vf u = *(const vf *)(gate_up + r * 2 * hidden + hidden + i + half);
            vi positive = g > splat(0); /* e to a power of at most 0 cannot overflow */
            vf e = exp_of((vf)((vi)g | 0x80000000));
            vf top = (vf)(((vi)splat(1) & positive) | ((vi)e & ~positive));
            vf y = g * top / (e + 1.0f) * u;
            for (int j = 0; j < LANES; j++) store(out, r * hidden + i + half + j, y[j], rounds);
        }
    }
}

/* Floats of memory that a step of so many rows needs. */
int64_t workspace(const Sizes *s, int64_t rows) {
    return rows * (5 * (int64_t)s->width + 3 * (int64_t)s->hidden) + (int64_t)s->threads * s->max_len;
}

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
#endif

/* x[rows][width], the embedded tokens, is used up; logits[logit_rows][vocabulary] of the first rows. */
void step(const Sizes *s, const Weights *w, float *x, int64_t rows, const int64_t *slots,
          const int64_t *positions, void *keys, void *values, float *memory, float *logits,
          int64_t logit_rows) {
    int width = s->width, stride = 3 * width;
    float *normed = memory, *qkv = normed + rows * width, *mixed = qkv + rows * stride;
    float *gate_up = mixed + rows * width, *inner = gate_up + rows * 2 * s->hidden;
    float *all_scores = inner + rows * s->hidden;
#pragma omp parallel num_threads(s->threads)
    {
        float *scores = all_scores + (int64_t)omp_get_thread_num() * s->max_len;
        for (int l = 0; l < s->layers; l++) {
            const Layer *layer = w->layers + l;
            norm(s, x, rows, layer->norm_attention, normed);
            linear(s, normed, rows, width, layer->qkv, stride, qkv, 0);
            remember(s, w, l, qkv, stride, rows, slots, positions, keys, values);
            attend(s, l, qkv, stride, rows, slots, positions, keys, values, scores, mixed);
            linear(s, mixed, rows, width, layer->out, width, x, 1);
            norm(s, x, rows, layer->norm_mlp, normed);
            linear(s, normed, rows, width, layer->gate_up, 2 * s->hidden, gate_up, 0);
            gate(gate_up, rows, s->hidden, inner, s->weights != FLOAT32);
            linear(s, inner, rows, s->hidden, layer->down, width, x, 1);
        }
        if (logit_rows) {
            norm(s, x, logit_rows, w->norm, normed);
            linear(s, normed, logit_rows, width, w->head, s->vocabulary, logits, 0);
        }
    }
}
