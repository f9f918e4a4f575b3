/* Block-causal attention over packed clips on a CPU, forward and backward, in bfloat16.

   Compiled and called by tokenizer/cpu/attention.py; the same in PyTorch is padded_attention
   of tokenizer/attention/clip_groups.py. A query of block t sees the keys of blocks up to t of its clip: the first
   `limit` keys, a number that does not fall from one query to the next. A clip's head is one
   thread's work, in one order: results do not depend on the number of threads. */

#include "tiles.h"

typedef struct {
    int64_t clips, blocks, heads, width; /* width of a head */
    int64_t queries;                      /* rows of the whole batch */
    int64_t q_stride, k_stride, v_stride; /* numbers from one row to the next */
    const int64_t *query_ends, *key_ends; /* [clip][block], rows of the whole batch */
    float scale;
} Shape;

typedef struct {
    int64_t rows, padded, keys, padded_keys; /* padded to a multiple of 32 */
    int64_t first, first_key;                /* row of the batch */
} Clip;

static Clip clip_of(const Shape *s, int64_t clip) {
    Clip c;
    int64_t last = (clip + 1) * s->blocks - 1;
    c.first = clip ? s->query_ends[clip * s->blocks - 1] : 0;
    c.first_key = clip ? s->key_ends[clip * s->blocks - 1] : 0;
    c.rows = s->query_ends[last] - c.first;
    c.keys = s->key_ends[last] - c.first_key;
    c.padded = padded32(c.rows);
    c.padded_keys = padded32(c.keys);
    return c;
}

/* the most rows of a clip, padded */
static int64_t most_rows(const Shape *s, const int64_t *ends) {
    int64_t most = 0;
    for (int64_t clip = 0; clip < s->clips; clip++) {
        const int64_t first = clip ? ends[clip * s->blocks - 1] : 0;
        const int64_t rows = ends[(clip + 1) * s->blocks - 1] - first;
        most = rows > most ? rows : most;
    }
    return padded32(most);
}

/* how many keys each query sees; none where there is no query */
static void limits_of(const Shape *s, int64_t clip, const Clip *c, int32_t *limits) {
    int64_t row = 0;
    for (int64_t t = clip * s->blocks; t < (clip + 1) * s->blocks; t++)
        for (; row < s->query_ends[t] - c->first; row++) limits[row] = s->key_ends[t] - c->first_key;
    for (; row < c->padded; row++) limits[row] = 0;
}

/* --- forward */

static const vi PLACES = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* a row of scores becomes weights that do not add up to 1; returns their sum, and the exponent */
static float soften(const float *scores, bf16 *weights, int64_t limit, int64_t padded, float scale,
                    float *top) {
    vf most = splat(-3e38f), total = splat(0);
    for (int64_t n = 0; n < limit; n += LANES) {
        vi seen = PLACES + (int32_t)n < (int32_t)limit;
        most = larger(most, choose(seen, *(const vf *)(scores + n), splat(-3e38f)));
    }
    *top = largest_of(most) * scale;
    for (int64_t n = 0; n < padded; n += LANES) {
        vi seen = PLACES + (int32_t)n < (int32_t)limit;
        vf x = power_of_two(*(const vf *)(scores + n) * scale - *top);
        x = (vf)((vi)x & seen);
        total += x;
        write_bf16(weights + n, x);
    }
    return sum_of(total);
}

/* out: (queries, heads, width); exponents: (heads, queries), log2 of the sums of the softmax */
void attention(const Shape *s, const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out,
               float *exponents) {
    const int64_t width = padded32(s->width), tasks = s->clips * s->heads;
    const int64_t queries = most_rows(s, s->query_ends), keys = most_rows(s, s->key_ends);
    const float scale = s->scale * 1.44269504f;
#pragma omp parallel
    {
        char *free_place = scratch(2 * width * (queries + 3 * keys) + 4 * 16 * (width + keys)
                                   + 2 * 16 * keys + 4 * queries + 1024);
        bf16 *left = take(&free_place, 2 * queries * width);
        bf16 *rows = take(&free_place, 2 * keys * width);
        bf16 *k_pairs = take(&free_place, 2 * keys * width);
        bf16 *v_pairs = take(&free_place, 2 * keys * width);
        float *scores = take(&free_place, 4 * 16 * keys);
        bf16 *weights = take(&free_place, 2 * 16 * keys);
        float *mixed = take(&free_place, 4 * 16 * width);
        int32_t *limits = take(&free_place, 4 * queries);
        open_tiles();
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < tasks; task++) {
            const int64_t head = task % s->heads;
            const Clip c = clip_of(s, task / s->heads);
            const int64_t at = head * s->width;
            limits_of(s, task / s->heads, &c, limits);
            copy_rows(left, q + c.first * s->q_stride + at, s->q_stride, c.rows, c.padded,
                      s->width, width);
            copy_rows(rows, k + c.first_key * s->k_stride + at, s->k_stride, c.keys,
                      c.padded_keys, s->width, width);
            pair_columns(k_pairs, rows, c.padded_keys, width);
            copy_rows(rows, v + c.first_key * s->v_stride + at, s->v_stride, c.keys,
                      c.padded_keys, s->width, width);
            pair_rows(v_pairs, rows, c.padded_keys, width);
            for (int64_t first = 0; first < c.rows; first += 16) {
                const int64_t count = c.rows - first < 16 ? c.rows - first : 16;
                const int64_t seen = padded32(limits[first + count - 1]);
                float sums[16];
                product(scores, seen, left + first * width, width, k_pairs, TILE,
                        c.padded_keys / 16 * TILE, seen / 16, width / 32);
                for (int64_t i = 0; i < count; i++) {
                    float top;
                    sums[i] = soften(scores + i * seen, weights + i * seen, limits[first + i],
                                     seen, scale, &top);
                    exponents[head * s->queries + c.first + first + i] =
                        top + __builtin_log2f(sums[i]);
                }
                product(mixed, width, weights, seen, v_pairs, TILE, width / 16 * TILE, width / 16,
                        seen / 32);
                for (int64_t i = 0; i < count; i++) {
                    bf16 *to = out + ((c.first + first + i) * s->heads + head) * s->width;
                    for (int64_t d = 0; d < s->width; d += LANES)
                        if (d + LANES <= s->width)
                            write_bf16(to + d, *(vf *)(mixed + i * width + d) / sums[i]);
                        else {
                            bf16 last[LANES];
                            write_bf16(last, *(vf *)(mixed + i * width + d) / sums[i]);
                            memcpy(to + d, last, sizeof(bf16) * (s->width - d));
                        }
                }
            }
        }
        close_tiles();
    }
}

/* --- backward */

static void put_rows(bf16 *to, int64_t stride, const float *from, int64_t rows, int64_t width,
                     int64_t width_padded) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t d = 0; d < width; d += LANES)
            if (d + LANES <= width)
                write_bf16(to + i * stride + d, *(const vf *)(from + i * width_padded + d));
            else {
                bf16 last[LANES];
                write_bf16(last, *(const vf *)(from + i * width_padded + d));
                memcpy(to + i * stride + d, last, sizeof(bf16) * (width - d));
            }
}

/* 32 keys' weights and gradients of scores, both (32, padded), and the latter also transposed:
   (padded, keys), columns from the first of these keys */
static void weigh(const float *scores, const float *from_values, const int32_t *limits,
                  const float *exponents, const float *means, int64_t key, int64_t begin,
                  int64_t padded, float scale, float factor, bf16 *weights, bf16 *gradients,
                  bf16 *transposed, int64_t keys) {
    for (int64_t i = begin; i < padded; i += LANES) {
        const vi limit = *(const vi *)(limits + i);
        const vf exponent = *(const vf *)(exponents + i), mean = *(const vf *)(means + i);
        vu words[16];
        for (int n = 0; n < 32; n++) {
            const int64_t here = n * padded + i;
            vf p = power_of_two(*(const vf *)(scores + here) * scale - exponent);
            p = (vf)((vi)p & ((int32_t)key + n < limit));
            write_bf16(weights + here, p);
            write_bf16(gradients + here, p * (*(const vf *)(from_values + here) - mean) * factor);
            vu bits = widened(gradients + here);
            if (n % 2)
                words[n / 2] |= bits << 16;
            else
                words[n / 2] = bits;
        }
        transpose(words);
        for (int j = 0; j < 16; j++) *(vu *)(transposed + (i + j) * keys + key) = words[j];
    }
}

/* gradients of q, k and v, which lie as these do, from that of out, (queries, heads, width) */
void attention_backward(const Shape *s, const bf16 *q, const bf16 *k, const bf16 *v,
                        const bf16 *out, const float *exponents, const bf16 *gradient, bf16 *q_out,
                        bf16 *k_out, bf16 *v_out) {
    const int64_t width = padded32(s->width), tasks = s->clips * s->heads;
    const int64_t queries = most_rows(s, s->query_ends), keys = most_rows(s, s->key_ends);
    const int64_t stride = s->heads * s->width;
    const float scale = s->scale * 1.44269504f;
#pragma omp parallel
    {
        char *free_place = scratch(2 * width * (5 * queries + 3 * keys) + 2 * queries * keys
                                   + 12 * 32 * queries + 4 * 16 * width + 12 * queries + 2048);
        bf16 *rows = take(&free_place, 2 * queries * width);
        bf16 *q_columns = take(&free_place, 2 * queries * width);
        bf16 *q_rows = take(&free_place, 2 * queries * width);
        bf16 *g_columns = take(&free_place, 2 * queries * width);
        bf16 *g_rows = take(&free_place, 2 * queries * width);
        bf16 *k_left = take(&free_place, 2 * keys * width);
        bf16 *v_left = take(&free_place, 2 * keys * width);
        bf16 *k_rows = take(&free_place, 2 * keys * width);
        bf16 *transposed = take(&free_place, 2 * queries * keys);
        float *scores = take(&free_place, 4 * 32 * queries);
        float *from_values = take(&free_place, 4 * 32 * queries);
        bf16 *weights = take(&free_place, 2 * 32 * queries);
        bf16 *gradients = take(&free_place, 2 * 32 * queries);
        float *mixed = take(&free_place, 4 * 16 * width);
        int32_t *limits = take(&free_place, 4 * queries);
        float *means = take(&free_place, 4 * queries);
        float *powers = take(&free_place, 4 * queries);
        open_tiles();
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < tasks; task++) {
            const int64_t head = task % s->heads, at = head * s->width;
            const Clip c = clip_of(s, task / s->heads);
            const int64_t q_tiles = c.padded / 16, all_keys = c.padded_keys;
            limits_of(s, task / s->heads, &c, limits);
            copy_rows(k_left, k + c.first_key * s->k_stride + at, s->k_stride, c.keys, all_keys,
                      s->width, width);
            copy_rows(v_left, v + c.first_key * s->v_stride + at, s->v_stride, c.keys, all_keys,
                      s->width, width);
            pair_rows(k_rows, k_left, all_keys, width);
            copy_rows(rows, q + c.first * s->q_stride + at, s->q_stride, c.rows, c.padded,
                      s->width, width);
            pair_columns(q_columns, rows, c.padded, width);
            pair_rows(q_rows, rows, c.padded, width);
            /* the mean of the gradient that weights get, by weight: out · gradient */
            copy_rows(g_rows, out + c.first * stride + at, stride, c.rows, c.padded, s->width,
                      width);
            copy_rows(rows, gradient + c.first * stride + at, stride, c.rows, c.padded, s->width,
                      width);
            for (int64_t i = 0; i < c.padded; i++) {
                vf total = splat(0);
                for (int64_t d = 0; d < width; d += LANES)
                    total += read_bf16(rows + i * width + d) * read_bf16(g_rows + i * width + d);
                means[i] = sum_of(total);
                powers[i] = i < c.rows ? exponents[head * s->queries + c.first + i] : 0;
            }
            pair_columns(g_columns, rows, c.padded, width);
            pair_rows(g_rows, rows, c.padded, width);
            int64_t seeing = 0; /* the first query that sees the key */
            for (int64_t key = 0; key < c.keys; key += 32) {
                while (seeing < c.rows && limits[seeing] <= key) seeing++;
                const int64_t begin = seeing / 32 * 32, tiles = (c.padded - begin) / 16;
                const int64_t skipped = begin / 16 * TILE, pairs = begin / 32 * (width / 16) * TILE;
                for (int half = 0; half < 32; half += 16) {
                    product(scores + half * c.padded + begin, c.padded, k_left + (key + half) * width,
                            width, q_columns + skipped, TILE, q_tiles * TILE, tiles, width / 32);
                    product(from_values + half * c.padded + begin, c.padded,
                            v_left + (key + half) * width, width, g_columns + skipped, TILE,
                            q_tiles * TILE, tiles, width / 32);
                }
                weigh(scores, from_values, limits, powers, means, key, begin, c.padded, scale,
                      s->scale, weights, gradients, transposed, all_keys);
                for (int half = 0; half < 32 && key + half < c.keys; half += 16) {
                    const int64_t left = c.keys - key - half, count = left < 16 ? left : 16;
                    const int64_t row = c.first_key + key + half;
                    product(mixed, width, weights + half * c.padded + begin, c.padded,
                            g_rows + pairs, TILE, width / 16 * TILE, width / 16, tiles / 2);
                    put_rows(v_out + row * s->v_stride + at, s->v_stride, mixed, count, s->width, width);
                    product(mixed, width, gradients + half * c.padded + begin, c.padded,
                            q_rows + pairs, TILE, width / 16 * TILE, width / 16, tiles / 2);
                    put_rows(k_out + row * s->k_stride + at, s->k_stride, mixed, count, s->width, width);
                }
            }
            for (int64_t first = 0; first < c.rows; first += 16) {
                const int64_t count = c.rows - first < 16 ? c.rows - first : 16;
                product(mixed, width, transposed + first * all_keys, all_keys, k_rows, TILE,
                        width / 16 * TILE, width / 16,
                        padded32(limits[first + count - 1]) / 32);
                put_rows(q_out + (c.first + first) * s->q_stride + at, s->q_stride, mixed, count, s->width,
                         width);
            }
        }
        close_tiles();
    }
}
