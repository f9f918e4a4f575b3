/* Linear maps of a Q-Former layer on a CPU, forward and backward, with what is around them.

   Compiled and called by tokenizer/cpu/linear.py. Before a product stands a layer norm or nothing,
   after it a GELU, a residual or nothing: rows pass once. What enters a product is bfloat16; sums,
   norms, residuals and weights are float32. Rows are cut into parts by their number alone, and sums
   over rows are taken part by part: results do not depend on the number of threads. */

#include "tiles.h"

#define CHUNK 128 /* rows that are worked on at a time */
#define PARTS 8   /* of the rows of a batch in backward: each has sums of its own */

typedef struct {
    int64_t rows, inputs, outputs;
    const float *weight, *bias;   /* (outputs, inputs), (outputs) */
    /* one of the two: (rows, inputs) */
    const float *x;
    const bf16 *x_half;
    const float *gain, *shift;    /* of a layer norm over x, or null */
    float *statistics;            /* (rows, 2): mean and 1 / deviation, with a norm */
    /* what comes out, (rows, outputs): bfloat16, or float32 with a residual */
    bf16 *out, *slope;            /* with a slope: GELU, and its derivative */
    const float *residual;
    float *out_float;
    /* backward: the gradient of what comes out, and of what went in */
    const bf16 *gradient;
    const float *gradient_float;
    bf16 *x_gradient;
    float *x_gradient_float;      /* with a norm, `residual` (rows, inputs) is added if not null */
    float *weight_gradient, *bias_gradient, *gain_gradient, *shift_gradient;
    float epsilon;
} Linear;

/* 1 / 2 (1 + erf(x / √2)) and the density, after Abramowitz and Stegun 7.1.26: within 2e-7 */
INLINE void normal(vf x, vf *below, vf *density) {
    vf size = (vf)((vi)x & 0x7fffffff) * 0.70710678f;
    vf t = 1.0f / (size * 0.3275911f + 1.0f);
    vf e = power_of_two(size * size * -1.44269504f);
    vf y = splat(1.061405429f);
    y = y * t - 1.453152027f;
    y = y * t + 1.421413741f;
    y = y * t - 0.284496736f;
    y = y * t + 0.254829592f;
    vf tail = 0.5f * y * t * e; /* beyond |x| */
    *below = choose(x < 0, tail, 1.0f - tail);
    *density = 0.39894228f * e;
}

static void to_half(bf16 *to, const float *from, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) write_bf16(to + i, *(const vf *)(from + i));
}

/* what enters the product, of some rows: (CHUNK, inputs), zeros after the last */
static void enter(const Linear *l, int64_t first, int64_t count, bf16 *to, int knows_statistics) {
    const int64_t n = l->inputs;
    memset(to + count * n, 0, sizeof(bf16) * (CHUNK - count) * n);
    if (l->x_half) {
        memcpy(to, l->x_half + first * n, sizeof(bf16) * count * n);
        return;
    }
    const float *x = l->x + first * n, *gain = l->gain, *shift = l->shift;
    if (!gain) {
        to_half(to, x, count * n);
        return;
    }
    float *statistics = l->statistics + 2 * first;
    const float epsilon = l->epsilon;
    for (int64_t i = 0; i < count; i++, x += n, to += n) {
        if (!knows_statistics) {
            vf total = splat(0), squares = splat(0);
            for (int64_t d = 0; d < n; d += LANES) total += *(const vf *)(x + d);
            const float mean = sum_of(total) / n;
            for (int64_t d = 0; d < n; d += LANES) {
                vf y = *(const vf *)(x + d) - mean;
                squares += y * y;
            }
            statistics[2 * i] = mean;
            statistics[2 * i + 1] = 1.0f / __builtin_sqrtf(sum_of(squares) / n + epsilon);
        }
        const float mean = statistics[2 * i], factor = statistics[2 * i + 1];
        for (int64_t d = 0; d < n; d += LANES) {
            vf y = (*(const vf *)(x + d) - mean) * factor;
            write_bf16(to + d, y * *(const vf *)(gain + d) + *(const vf *)(shift + d));
        }
    }
}

/* the weight as the right factor; its inputs along the width, or for backward along the rows */
static bf16 *weight_pairs(const Linear *l, int is_backward) {
    const int64_t bytes = 2 * l->inputs * l->outputs;
    bf16 *half = aligned_alloc(64, bytes), *pairs = aligned_alloc(64, bytes);
    if (!half || !pairs) abort();
    to_half(half, l->weight, l->inputs * l->outputs);
    (is_backward ? pair_rows : pair_columns)(pairs, half, l->outputs, l->inputs);
    free(half);
    return pairs;
}

/* (count, outputs) sums to what comes out */
static void leave(const Linear *l, int64_t row, const float *sums, int64_t count) {
    const int64_t n = l->outputs, at = row * n;
    const float *bias = l->bias, *residual = l->residual + at;
    float *to_float = l->out_float + at;
    bf16 *out = l->out + at, *slope = l->slope + at;
    if (l->residual)
        for (int64_t i = 0; i < count * n; i += n)
            for (int64_t d = 0; d < n; d += LANES) {
                vf y = *(const vf *)(sums + i + d) + *(const vf *)(bias + d);
                *(vf *)(to_float + i + d) = *(const vf *)(residual + i + d) + y;
            }
    else if (l->slope)
        for (int64_t i = 0; i < count * n; i += n)
            for (int64_t d = 0; d < n; d += LANES) {
                vf below, density, y = *(const vf *)(sums + i + d) + *(const vf *)(bias + d);
                normal(y, &below, &density);
                write_bf16(out + i + d, y * below);
                write_bf16(slope + i + d, below + y * density);
            }
    else
        for (int64_t i = 0; i < count * n; i += n)
            for (int64_t d = 0; d < n; d += LANES)
                write_bf16(out + i + d, *(const vf *)(sums + i + d) + *(const vf *)(bias + d));
}

void linear(const Linear *l) {
    const int64_t chunks = (l->rows + CHUNK - 1) / CHUNK;
    bf16 *pairs = weight_pairs(l, 0);
#pragma omp parallel
    {
        char *place = scratch(2 * CHUNK * l->inputs + 4 * 32 * l->outputs + 128);
        bf16 *left = take(&place, 2 * CHUNK * l->inputs);
        float *sums = take(&place, 4 * 32 * l->outputs);
        open_tiles();
#pragma omp for schedule(dynamic)
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const int64_t first = chunk * CHUNK, rest = l->rows - first;
            const int64_t count = rest < CHUNK ? rest : CHUNK;
            enter(l, first, count, left, 0);
            for (int64_t i = 0; i < count; i += 32) {
                product_of_32(sums, l->outputs, left + i * l->inputs, l->inputs, pairs, TILE,
                              l->outputs / 16 * TILE, l->outputs / 16, l->inputs / 32, 0);
                leave(l, first + i, sums, count - i < 32 ? count - i : 32);
            }
        }
        close_tiles();
    }
    free(pairs);
}

/* --- backward */

/* the gradient of the product, of some rows: (CHUNK, outputs), zeros after the last; its sums */
static void descend(const Linear *l, int64_t first, int64_t count, bf16 *to, float *bias) {
    const int64_t n = l->outputs;
    const bf16 *half = l->gradient + first * n, *slope = l->slope + first * n;
    const float *full = l->gradient_float + first * n;
    const int is_half = l->gradient != 0, is_gelu = l->slope != 0;
    memset(to + count * n, 0, sizeof(bf16) * (CHUNK - count) * n);
    for (int64_t i = 0; i < count * n; i += n)
        for (int64_t d = 0; d < n; d += LANES) {
            vf g = is_half ? read_bf16(half + i + d) : *(const vf *)(full + i + d);
            if (is_gelu) g *= read_bf16(slope + i + d);
            *(vf *)(bias + d) += g;
            write_bf16(to + i + d, g);
        }
}

/* (CHUNK, width) to (width, CHUNK) */
static void turn(bf16 *to, const bf16 *x, int64_t width) {
    for (int64_t n = 0; n < width; n += 16)
        for (int64_t k = 0; k < CHUNK; k += 32) {
            vu words[16];
            for (int i = 0; i < 16; i++) {
                const bf16 *first = x + (k + 2 * i) * width + n;
                words[i] = widened(first) | widened(first + width) << 16;
            }
            transpose(words);
            for (int i = 0; i < 16; i++) *(vu *)(to + (n + i) * CHUNK + k) = words[i];
        }
}

/* gradients of rows from those of what entered the product, (count, inputs) */
static void arrive(const Linear *l, int64_t row, const float *sums, int64_t count, float *gain,
                   float *shift) {
    const int64_t n = l->inputs;
    if (l->x_gradient) {
        to_half(l->x_gradient + row * n, sums, count * n);
        return;
    }
    if (!l->gain) {
        memcpy(l->x_gradient_float + row * n, sums, sizeof(float) * count * n);
        return;
    }
    const float *statistics = l->statistics + 2 * row, *gains = l->gain, *from = l->x + row * n;
    const float *residual = l->residual ? l->residual + row * n : 0;
    float *to = l->x_gradient_float + row * n;
    for (int64_t i = 0; i < count; i++, sums += n, from += n, to += n) {
        const float mean = statistics[2 * i], factor = statistics[2 * i + 1];
        vf total = splat(0), along = splat(0);
        for (int64_t d = 0; d < n; d += LANES) {
            vf g = *(const vf *)(sums + d), x = (*(const vf *)(from + d) - mean) * factor;
            *(vf *)(shift + d) += g;
            *(vf *)(gain + d) += g * x;
            g *= *(const vf *)(gains + d);
            total += g;
            along += g * x;
        }
        const float of_mean = sum_of(total) / n, of_x = sum_of(along) / n;
        for (int64_t d = 0; d < n; d += LANES) {
            vf g = *(const vf *)(sums + d) * *(const vf *)(gains + d);
            vf x = (*(const vf *)(from + d) - mean) * factor;
            g = (g - of_mean - x * of_x) * factor;
            if (residual) g += *(const vf *)(residual + i * n + d);
            *(vf *)(to + d) = g;
        }
    }
}

void linear_backward(const Linear *l) {
    const int64_t chunks = (l->rows + CHUNK - 1) / CHUNK, area = l->inputs * l->outputs;
    const int64_t sizes[4] = {area, l->outputs, l->inputs, l->inputs};
    const int64_t all = area + l->outputs + 2 * l->inputs;
    bf16 *pairs = weight_pairs(l, 1);
    float *parts = aligned_alloc(64, sizeof(float) * PARTS * all);
    if (!parts) abort();
#pragma omp parallel
    {
        char *place = scratch(2 * CHUNK * (2 * l->inputs + 2 * l->outputs) + 4 * 32 * l->inputs + 512);
        bf16 *left = take(&place, 2 * CHUNK * l->outputs);
        bf16 *turned = take(&place, 2 * CHUNK * l->outputs);
        bf16 *entered = take(&place, 2 * CHUNK * l->inputs);
        bf16 *entered_pairs = take(&place, 2 * CHUNK * l->inputs);
        float *sums = take(&place, 4 * 32 * l->inputs);
        open_tiles();
#pragma omp for schedule(dynamic)
        for (int64_t part = 0; part < PARTS; part++) {
            float *weight = parts + part * all, *bias = weight + area, *gain = bias + l->outputs;
            float *shift = gain + l->inputs;
            memset(weight, 0, sizeof(float) * all);
            for (int64_t chunk = chunks * part / PARTS; chunk < chunks * (part + 1) / PARTS; chunk++) {
                const int64_t first = chunk * CHUNK, rest = l->rows - first;
                const int64_t count = rest < CHUNK ? rest : CHUNK;
                descend(l, first, count, left, bias);
                turn(turned, left, l->outputs);
                enter(l, first, count, entered, 1);
                pair_rows(entered_pairs, entered, CHUNK, l->inputs);
                for (int64_t i = 0; i < l->outputs; i += 32)
                    product_of_32(weight + i * l->inputs, l->inputs, turned + i * CHUNK, CHUNK,
                                  entered_pairs, TILE, l->inputs / 16 * TILE, l->inputs / 16,
                                  CHUNK / 32, 1);
                for (int64_t i = 0; i < count; i += 32) {
                    product_of_32(sums, l->inputs, left + i * l->outputs, l->outputs, pairs, TILE,
                                  l->inputs / 16 * TILE, l->inputs / 16, l->outputs / 32, 0);
                    arrive(l, first + i, sums, count - i < 32 ? count - i : 32, gain, shift);
                }
            }
        }
        close_tiles();
#pragma omp for
        for (int64_t i = 0; i < all; i += LANES) {
            vf total = *(const vf *)(parts + i);
            for (int part = 1; part < PARTS; part++) total += *(const vf *)(parts + part * all + i);
            *(vf *)(parts + i) = total;
        }
    }
    float *const results[4] = {l->weight_gradient, l->bias_gradient, l->gain_gradient, l->shift_gradient};
    const float *from = parts;
    for (int i = 0; i < 4; i++) {
        if (results[i]) memcpy(results[i], from, sizeof(float) * sizes[i]);
        from += sizes[i];
    }
    free(parts);
    free(pairs);
}
