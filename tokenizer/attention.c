/* Block-causal attention over packed clips on a CPU, forward and backward, in bfloat16.

   Compiled and called by tokenizer/cpu_attention.py; the same in PyTorch is
   padded_attention of tokenizer/masks.py. A query of block t sees the keys of blocks up to t of its
   clip: the first `limit` keys, a number that does not fall from one query to the next. What enters
   a product is bfloat16, sums and the softmax are float32. A clip's head is one thread's work, in
   one order: results do not depend on the number of threads.

   Products are made of tiles, 16 rows of 32 inputs times 32 inputs of 16 columns: on processors
   with AMX an instruction each. A left factor lies row by row. In a right factor, a tile has the
   inputs in pairs: word [i][j] holds inputs 2i and 2i + 1 of column j ("paired"). */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AMX_BF16__) && !defined(NO_TILES)
#define TILES 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define LANES 16
#define TILE 512 /* bfloat16 numbers */

typedef float vf __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(32), aligned(2), may_alias));
typedef uint16_t bf16;

#define INLINE static inline __attribute__((always_inline))

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

/* --- vectors */

INLINE vf splat(float x) { return (vf){} + x; }
INLINE vf as_float(vu x) { return (vf)x; }
INLINE vf choose(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
INLINE vf larger(vf a, vf b) { return choose(a > b, a, b); }
INLINE vf read_bf16(const bf16 *x) { return as_float(__builtin_convertvector(*(const vh *)x, vu) << 16); }

/* bits of the nearest bfloat16, even where two are as near, in the low half of each word */
INLINE vu round_bf16(vf x) {
    vu bits = (vu)x;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

INLINE void write_bf16(bf16 *to, vf x) { *(vh *)to = __builtin_convertvector(round_bf16(x), vh); }

/* 2^x within 3e-6 of itself, for x up to 0; under -126 it is 2^-126 */
INLINE vf power_of_two(vf x) {
    const vf magic = splat(12582912.0f); /* 1.5 · 2^23: its last digit is 1 */
    x = larger(x, splat(-126.0f));
    vf whole = x + magic;
    vf f = x - (whole - magic);
    vf y = splat(0.0013333558f);
    y = y * f + 0.0096181291f;
    y = y * f + 0.0555041087f;
    y = y * f + 0.2402265070f;
    y = y * f + 0.6931471806f;
    y = y * f + 1.0f;
    return as_float((vu)y + ((vu)whole << 23));
}

INLINE float largest_of(vf x) {
    float y = x[0];
    for (int i = 1; i < LANES; i++) y = x[i] > y ? x[i] : y;
    return y;
}

INLINE float sum_of(vf x) {
    float y = 0;
    for (int i = 0; i < LANES; i++) y += x[i];
    return y;
}

#define PASS(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)

/* 16 × 16 words, columns to rows: swaps halves, quarters, pairs, neighbours */
INLINE void transpose(vu x[16]) {
    for (int i = 0; i < 8; i++) {
        vu a = x[i], b = x[i + 8];
        x[i] = PASS(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
        x[i + 8] = PASS(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    }
    for (int j = 0; j < 16; j += 8)
        for (int i = j; i < j + 4; i++) {
            vu a = x[i], b = x[i + 4];
            x[i] = PASS(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
            x[i + 4] = PASS(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
        }
    for (int j = 0; j < 16; j += 4)
        for (int i = j; i < j + 2; i++) {
            vu a = x[i], b = x[i + 2];
            x[i] = PASS(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
            x[i + 2] = PASS(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
        }
    for (int i = 0; i < 16; i += 2) {
        vu a = x[i], b = x[i + 1];
        x[i] = PASS(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
        x[i + 1] = PASS(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    }
}

/* --- tiles */

#ifdef TILES

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} TileShapes;

static void open_tiles(void) {
    TileShapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shapes.bytes[i] = 64;
        shapes.rows[i] = 16;
    }
    _tile_loadconfig(&shapes);
}

static void close_tiles(void) { _tile_release(); }

/* asks the system to let this process use tiles: 1, or −1 if it refuses; 0 if there are none */
int32_t ask_for_tiles(void) { return syscall(SYS_arch_prctl, 0x1023, 18) ? -1 : 1; }

/* c (16, 16 columns) = a (16, 32 inputs) b; several column tiles at a time, that waits overlap */
static void product(float *c, int64_t c_stride, const bf16 *a, int64_t a_stride, const bf16 *b,
                    int64_t column_step, int64_t input_step, int64_t columns, int64_t inputs) {
    int64_t j = 0;
    for (; j + 4 <= columns; j += 4) {
        const bf16 *from = b + j * column_step;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t k = 0; k < inputs; k++, from += input_step) {
            _tile_loadd(4, a + 32 * k, 2 * a_stride);
            _tile_loadd(5, from, 64);
            _tile_loadd(6, from + column_step, 64);
            _tile_dpbf16ps(0, 4, 5);
            _tile_dpbf16ps(1, 4, 6);
            _tile_loadd(5, from + 2 * column_step, 64);
            _tile_loadd(6, from + 3 * column_step, 64);
            _tile_dpbf16ps(2, 4, 5);
            _tile_dpbf16ps(3, 4, 6);
        }
        _tile_stored(0, c + 16 * j, 4 * c_stride);
        _tile_stored(1, c + 16 * j + 16, 4 * c_stride);
        _tile_stored(2, c + 16 * j + 32, 4 * c_stride);
        _tile_stored(3, c + 16 * j + 48, 4 * c_stride);
    }
    for (; j < columns; j++) {
        const bf16 *from = b + j * column_step;
        _tile_zero(0);
        for (int64_t k = 0; k < inputs; k++, from += input_step) {
            _tile_loadd(4, a + 32 * k, 2 * a_stride);
            _tile_loadd(5, from, 64);
            _tile_dpbf16ps(0, 4, 5);
        }
        _tile_stored(0, c + 16 * j, 4 * c_stride);
    }
}

#else

static void open_tiles(void) {}
static void close_tiles(void) {}
int32_t ask_for_tiles(void) { return 0; }

static void product(float *c, int64_t c_stride, const bf16 *a, int64_t a_stride, const bf16 *b,
                    int64_t column_step, int64_t input_step, int64_t columns, int64_t inputs) {
    for (int64_t j = 0; j < columns; j++)
        for (int row = 0; row < 16; row++) {
            vf total = splat(0);
            for (int64_t k = 0; k < inputs; k++)
                for (int i = 0; i < 16; i++) {
                    vu pair = *(const vu *)(b + j * column_step + k * input_step + 32 * i);
                    const bf16 *x = a + row * a_stride + 32 * k + 2 * i;
                    vu one = (vu){} + ((uint32_t)x[0] << 16), two = (vu){} + ((uint32_t)x[1] << 16);
                    total += as_float(one) * as_float(pair << 16);
                    total += as_float(two) * as_float(pair & 0xffff0000u);
                }
            *(vf *)(c + row * c_stride + 16 * j) = total;
        }
}

#endif

/* --- how factors lie */

/* rows of a head, padded with zeros to (padded, width_padded) */
static void copy_rows(bf16 *to, const bf16 *from, int64_t stride, int64_t rows, int64_t padded,
                      int64_t width, int64_t width_padded) {
    if (width < width_padded || rows < padded) memset(to, 0, sizeof(bf16) * padded * width_padded);
    for (int64_t i = 0; i < rows; i++)
        memcpy(to + i * width_padded, from + i * stride, sizeof(bf16) * width);
}

/* paired tiles [width / 32][rows / 16] of x transposed: inputs are along the width */
static void pair_columns(bf16 *to, const bf16 *x, int64_t rows, int64_t width) {
    for (int64_t k = 0; k < width / 32; k++)
        for (int64_t n = 0; n < rows / 16; n++, to += TILE) {
            vu words[16];
            for (int i = 0; i < 16; i++)
                words[i] = *(const vu *)(x + (16 * n + i) * width + 32 * k);
            transpose(words);
            for (int i = 0; i < 16; i++) *(vu *)(to + 32 * i) = words[i];
        }
}

/* paired tiles [rows / 32][width / 16] of x: inputs are its rows */
static void pair_rows(bf16 *to, const bf16 *x, int64_t rows, int64_t width) {
    for (int64_t k = 0; k < rows / 32; k++)
        for (int64_t n = 0; n < width / 16; n++, to += TILE)
            for (int i = 0; i < 16; i++) {
                const bf16 *first = x + (32 * k + 2 * i) * width + 16 * n;
                vu low = __builtin_convertvector(*(const vh *)first, vu);
                vu high = __builtin_convertvector(*(const vh *)(first + width), vu);
                *(vu *)(to + 32 * i) = low | high << 16;
            }
}

static int64_t padded32(int64_t n) { return (n + 31) / 32 * 32; }

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

/* memory of this thread, kept from call to call */
static char *scratch(int64_t bytes) {
    static _Thread_local char *kept;
    static _Thread_local int64_t size;
    if (bytes > size) {
        free(kept);
        kept = aligned_alloc(64, (bytes + 63) / 64 * 64);
        size = kept ? bytes : 0;
    }
    if (!kept) abort();
    return kept;
}

static void *take(char **from, int64_t bytes) {
    char *here = *from;
    *from += (bytes + 63) / 64 * 64;
    return here;
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
            vu bits = round_bf16(p * (*(const vf *)(from_values + here) - mean) * factor);
            write_bf16(weights + here, p);
            *(vh *)(gradients + here) = __builtin_convertvector(bits, vh);
            if (n % 2)
                words[n / 2] |= bits << 16;
            else
                words[n / 2] = bits;
        }
        transpose(words);
        for (int j = 0; j < 16; j++) *(vu *)(transposed + (i + j) * keys + key) = words[j];
    }
}

/* gradients of q, k and v, each (rows, heads, width), from that of out, likewise */
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
                    const int64_t to = (c.first_key + key + half) * stride + at;
                    product(mixed, width, weights + half * c.padded + begin, c.padded,
                            g_rows + pairs, TILE, width / 16 * TILE, width / 16, tiles / 2);
                    put_rows(v_out + to, stride, mixed, count, s->width, width);
                    product(mixed, width, gradients + half * c.padded + begin, c.padded,
                            q_rows + pairs, TILE, width / 16 * TILE, width / 16, tiles / 2);
                    put_rows(k_out + to, stride, mixed, count, s->width, width);
                }
            }
            for (int64_t first = 0; first < c.rows; first += 16) {
                const int64_t count = c.rows - first < 16 ? c.rows - first : 16;
                product(mixed, width, transposed + first * all_keys, all_keys, k_rows, TILE,
                        width / 16 * TILE, width / 16,
                        padded32(limits[first + count - 1]) / 32);
                put_rows(q_out + (c.first + first) * stride + at, stride, mixed, count, s->width,
                         width);
            }
        }
        close_tiles();
    }
}
