/* A convolution with bias and ReLU on a CPU with AMX, as accurate as one in float32.

   Compiled and called by evaluation/encoders/i3d/convolution.py. A float32 number is the sum of
   three of bfloat16, up to its last bit: high, middle, low. Of the nine products of two such sums
   the three smallest are below the last bit of the result and are left out; the other six are
   products of tiles, 16 rows of 32 inputs times 32 inputs of 16 columns, with float32 sums.

   Nothing is unfolded: inputs lie with their padding, channels last, and what a tap of the kernel
   sees of neighbouring pixels lies a fixed number of elements further. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TILE 512 /* bfloat16 numbers */
#define ROWS 32  /* pixels of a step; as many outputs */

typedef uint16_t bf16;

/* asks the system to let this process use tiles: 1, or -1 if it refuses */
int32_t ask_for_tiles(void) { return syscall(SYS_arch_prctl, 0x1023, 18) ? -1 : 1; }

static void open_tiles(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shapes.bytes[i] = 64;
        shapes.rows[i] = 16;
    }
    _tile_loadconfig(&shapes);
}

/* --- into parts */

static inline __m512 whole(__m256i half) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* of 16 places those before the end */
static inline __mmask16 before(int64_t end) {
    return end >= 16 ? 0xffff : end > 0 ? (1u << end) - 1 : 0;
}

/* count numbers to their three parts, zeros up to `padded`; parts lie `part` elements apart */
static void split_row(bf16 *to, int64_t part, const float *from, int64_t count, int64_t padded) {
    for (int64_t i = 0; i < padded; i += 16) {
        const __mmask16 written = before(padded - i);
        __m512 x = _mm512_maskz_loadu_ps(before(count - i), from + i);
        for (int place = 0; place < 3; place++) {
            const __m256i half = (__m256i)_mm512_cvtneps_pbh(x);
            _mm256_mask_storeu_epi16(to + place * part + i, written, half);
            x = _mm512_sub_ps(x, whole(half));
        }
    }
}

typedef struct {
    int64_t frames, rows, columns, channels;     /* of the input, float32, channels last */
    int64_t above, left;                         /* rows and columns of zeros before */
    int64_t padded_rows, padded_columns, padded; /* sizes of what is made */
    int64_t part;
    const float *numbers;
    bf16 *parts;
} Split;

void split(const Split *s) {
    const int64_t row = s->padded_columns * s->padded;
#pragma omp parallel for schedule(static)
    for (int64_t line = 0; line < s->frames * s->padded_rows; line++) {
        const int64_t frame = line / s->padded_rows, y = line % s->padded_rows - s->above;
        bf16 *to = s->parts + line * row;
        if (y < 0 || y >= s->rows) {
            for (int place = 0; place < 3; place++) memset(to + place * s->part, 0, 2 * row);
            continue;
        }
        const float *from = s->numbers + (frame * s->rows + y) * s->columns * s->channels;
        const int64_t end = s->left + s->columns;
        for (int place = 0; place < 3; place++) {
            bf16 *here = to + place * s->part;
            memset(here, 0, 2 * s->left * s->padded);
            memset(here + end * s->padded, 0, 2 * (s->padded_columns - end) * s->padded);
        }
        to += s->left * s->padded;
        if (s->channels == s->padded) {
            split_row(to, s->part, from, s->columns * s->channels, s->columns * s->channels);
            continue;
        }
        for (int64_t x = 0; x < s->columns; x++, to += s->padded, from += s->channels)
            split_row(to, s->part, from, s->channels, s->padded);
    }
}

/* --- the products */

typedef struct {
    int64_t lines, pixels, pitch, width; /* a line's pixels; of `pitch` in a row `width` count */
    int64_t step, part;                  /* elements from pixel to pixel, and from part to part */
    int64_t tiles, outputs;              /* of the kernel; outputs of a pixel */
    const bf16 *parts, *weight;          /* weight: [outputs / 32][tiles][part][2][TILE] */
    const float *bias;                   /* of as many outputs as there are in `weight` */
    const int64_t *starts, *first, *last; /* of each line: its element, its first and last tile */
    const int64_t *offsets;              /* of each tile of inputs: elements from the pixel's */
    const int64_t *targets;              /* of each line: the first pixel that it makes */
    float *out;
} Convolution;

/* sums of 32 pixels, or of the first 16, and 32 outputs */
static inline __attribute__((always_inline)) void products(const Convolution *c, const bf16 *in,
                                                           const bf16 *weight, int64_t from,
                                                           int64_t to, float *sums, int is_half) {
    const int64_t bytes = 2 * c->step, below = 16 * c->step;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t tile = from; tile < to; tile++) {
        const bf16 *high = in + c->offsets[tile], *middle = high + c->part, *low = middle + c->part;
        const bf16 *w = weight + tile * 6 * TILE;
#define LEFT(x) \
    _tile_loadd(4, x, bytes); \
    if (!is_half) _tile_loadd(5, x + below, bytes);
#define RIGHT(place) \
    _tile_loadd(6, w + 2 * place * TILE, 64); \
    _tile_loadd(7, w + (2 * place + 1) * TILE, 64);
#define ADD \
    _tile_dpbf16ps(0, 4, 6); \
    _tile_dpbf16ps(1, 4, 7); \
    if (!is_half) _tile_dpbf16ps(2, 5, 6); \
    if (!is_half) _tile_dpbf16ps(3, 5, 7);
        LEFT(low) RIGHT(0) ADD
        LEFT(middle) ADD
        RIGHT(1) ADD
        LEFT(high) ADD
        RIGHT(2) ADD
        RIGHT(0) ADD
    }
    _tile_stored(0, sums, 128);
    _tile_stored(1, sums + 16, 128);
    _tile_stored(2, sums + 16 * 32, 128);
    _tile_stored(3, sums + 16 * 32 + 16, 128);
}

/* sums of a step, with bias and ReLU, to where they belong */
static inline void leave(const Convolution *c, int64_t line, int64_t pixel, int64_t output,
                         const float *sums) {
    const __mmask16 masks[2] = {before(c->outputs - output), before(c->outputs - output - 16)};
    const __m512 bias[2] = {_mm512_loadu_ps(c->bias + output), _mm512_loadu_ps(c->bias + output + 16)};
    for (int64_t i = 0; i < ROWS && pixel + i < c->pixels; i++, sums += 32) {
        const int64_t row = (pixel + i) / c->pitch, column = (pixel + i) % c->pitch;
        if (column >= c->width) continue;
        float *to = c->out + (c->targets[line] + row * c->width + column) * c->outputs + output;
        for (int half = 0; half < 2; half++) {
            const __m512 x = _mm512_add_ps(_mm512_load_ps(sums + 16 * half), bias[half]);
            _mm512_mask_storeu_ps(to + 16 * half, masks[half], _mm512_max_ps(x, _mm512_setzero_ps()));
        }
    }
}

void convolve(const Convolution *c) {
    const int64_t columns = (c->outputs + 31) / 32;
#pragma omp parallel
    {
        float sums[ROWS * 32] __attribute__((aligned(64)));
        open_tiles();
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t column = 0; column < columns; column++)
            for (int64_t line = 0; line < c->lines; line++) {
                const bf16 *weight = c->weight + column * c->tiles * 6 * TILE;
                const bf16 *in = c->parts + c->starts[line];
                for (int64_t pixel = 0; pixel < c->pixels; pixel += ROWS) {
                    const bf16 *from = in + pixel * c->step;
                    if (c->pixels - pixel > 16)
                        products(c, from, weight, c->first[line], c->last[line], sums, 0);
                    else
                        products(c, from, weight, c->first[line], c->last[line], sums, 1);
                    leave(c, line, pixel, 32 * column, sums);
                }
            }
        _tile_release();
    }
}

#else

int32_t ask_for_tiles(void) { return 0; }

#endif
