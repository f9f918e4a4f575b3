/* What attention.c and linear.c are made of: vectors, tiles, and how factors of products lie.

   What enters a product is bfloat16, sums are float32. Products are made of tiles, 16 rows of 32
   inputs times 32 inputs of 16 columns: on processors with AMX an instruction each. A left factor
   lies row by row. In a right factor, a tile has the inputs in pairs: word [i][j] holds inputs 2i
   and 2i + 1 of column j ("paired"). */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512BF16__) && !defined(NO_TILES)
#include <immintrin.h>
#endif
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

/* --- vectors */

INLINE vf splat(float x) { return (vf){} + x; }
INLINE vf as_float(vu x) { return (vf)x; }
INLINE vf choose(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
INLINE vf larger(vf a, vf b) { return choose(a > b, a, b); }

/* bits of bfloat16 numbers, in the low half of each word */
#if defined(__AVX512BF16__) && !defined(NO_TILES)
INLINE vu widened(const bf16 *x) {
    return (vu)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x));
}
INLINE vh rounded(vf x) { return (vh)_mm512_cvtneps_pbh((__m512)x); }
#else
INLINE vu widened(const bf16 *x) { return __builtin_convertvector(*(const vh *)x, vu); }
/* to the nearest, even where two are as near */
INLINE vh rounded(vf x) {
    vu bits = (vu)x;
    return __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, vh);
}
#endif

INLINE vf read_bf16(const bf16 *x) { return as_float(widened(x) << 16); }
INLINE void write_bf16(bf16 *to, vf x) { *(vh *)to = rounded(x); }

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

#define PASS(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)

#define FOLD(f, x) \
    x = f(x, PASS(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)); \
    x = f(x, PASS(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)); \
    x = f(x, PASS(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)); \
    x = f(x, PASS(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14))

INLINE vf plus(vf a, vf b) { return a + b; }

INLINE float largest_of(vf x) {
    FOLD(larger, x);
    return x[0];
}

INLINE float sum_of(vf x) {
    FOLD(plus, x);
    return x[0];
}

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

/* c (32, 16 columns) = or += a (32, 32 inputs) b; an even number of columns */
static void product_of_32(float *c, int64_t c_stride, const bf16 *a, int64_t a_stride,
                          const bf16 *b, int64_t column_step, int64_t input_step, int64_t columns,
                          int64_t inputs, int adds) {
    for (int64_t j = 0; j < columns; j += 2) {
        const bf16 *from = b + j * column_step;
        float *to = c + 16 * j, *below = to + 16 * c_stride;
        if (adds) {
            _tile_loadd(0, to, 4 * c_stride);
            _tile_loadd(1, to + 16, 4 * c_stride);
            _tile_loadd(2, below, 4 * c_stride);
            _tile_loadd(3, below + 16, 4 * c_stride);
        } else {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        }
        for (int64_t k = 0; k < inputs; k++, from += input_step) {
            _tile_loadd(4, a + 32 * k, 2 * a_stride);
            _tile_loadd(5, a + 16 * a_stride + 32 * k, 2 * a_stride);
            _tile_loadd(6, from, 64);
            _tile_loadd(7, from + column_step, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, to, 4 * c_stride);
        _tile_stored(1, to + 16, 4 * c_stride);
        _tile_stored(2, below, 4 * c_stride);
        _tile_stored(3, below + 16, 4 * c_stride);
    }
}

#else

static void open_tiles(void) {}
static void close_tiles(void) {}
int32_t ask_for_tiles(void) { return 0; }

static void product_of_rows(float *c, int64_t c_stride, const bf16 *a, int64_t a_stride,
                            const bf16 *b, int64_t column_step, int64_t input_step,
                            int64_t columns, int64_t inputs, int rows, int adds) {
    for (int64_t j = 0; j < columns; j++)
        for (int row = 0; row < rows; row++) {
            vf *to = (vf *)(c + row * c_stride + 16 * j), total = adds ? *to : splat(0);
            for (int64_t k = 0; k < inputs; k++)
                for (int i = 0; i < 16; i++) {
                    vu pair = *(const vu *)(b + j * column_step + k * input_step + 32 * i);
                    const bf16 *x = a + row * a_stride + 32 * k + 2 * i;
                    vu one = (vu){} + ((uint32_t)x[0] << 16), two = (vu){} + ((uint32_t)x[1] << 16);
                    total += as_float(one) * as_float(pair << 16);
                    total += as_float(two) * as_float(pair & 0xffff0000u);
                }
            *to = total;
        }
}

static void product(float *c, int64_t c_stride, const bf16 *a, int64_t a_stride, const bf16 *b,
                    int64_t column_step, int64_t input_step, int64_t columns, int64_t inputs) {
    product_of_rows(c, c_stride, a, a_stride, b, column_step, input_step, columns, inputs, 16, 0);
}

static void product_of_32(float *c, int64_t c_stride, const bf16 *a, int64_t a_stride,
                          const bf16 *b, int64_t column_step, int64_t input_step, int64_t columns,
                          int64_t inputs, int adds) {
    product_of_rows(c, c_stride, a, a_stride, b, column_step, input_step, columns, inputs, 32,
                    adds);
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
                *(vu *)(to + 32 * i) = widened(first) | widened(first + width) << 16;
            }
}

static int64_t padded32(int64_t n) { return (n + 31) / 32 * 32; }

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
