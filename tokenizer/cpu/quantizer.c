/* The search of the codebook in training on a CPU: nearest codes and the entropy term, in float32.

   Compiled and called by tokenizer/cpu/quantizer.py; the same in PyTorch is `_search` of
   tokenizer/quantizer.py. A token's scores over the codes stay in the cache: neither they nor
   their softmax are ever written for all tokens. Tokens are summed in parts of a fixed size, one
   after the other: results do not depend on the number of threads. */

#include "tiles.h"

#define PART 128 /* tokens */
#define LOG_2 0.69314718f

typedef struct {
    int64_t tokens, codes, width; /* codes: a multiple of 16 */
    float scale;                   /* of cosines to logits in base 2 */
} Sizes;

/* cosines of a token with all codes; `book` is (width, codes) */
INLINE void scores_of(const Sizes *s, const float *unit, const float *book, float *scores) {
    for (int64_t n = 0; n < s->codes; n += LANES) {
        vf total = splat(unit[0]) * *(const vf *)(book + n);
        for (int64_t d = 1; d < s->width; d++)
            total += splat(unit[d]) * *(const vf *)(book + d * s->codes + n);
        *(vf *)(scores + n) = total;
    }
}

/* 2^x; nothing where it is under 2^-64, as numbers that small times a gradient are denormal and slow */
INLINE vf softened(vf x) { return (vf)((x > -64) & (vi)power_of_two(x)); }

/* the first of the largest, as argmax */
INLINE int64_t place_of_largest(const float *scores, int64_t codes, float *top) {
    vf most = splat(-3e38f);
    vi place = {};
    for (int64_t n = 0; n < codes; n += LANES) {
        const vf x = *(const vf *)(scores + n);
        const vi is_more = x > most;
        most = choose(is_more, x, most);
        place = (is_more & (int32_t)n) | (~is_more & place);
    }
    int64_t best = codes;
    *top = most[0];
    for (int i = 1; i < LANES; i++) *top = most[i] > *top ? most[i] : *top;
    for (int i = 0; i < LANES; i++)
        if (most[i] == *top && place[i] + i < best) best = place[i] + i;
    return best;
}

/* ids, entropies in nats, exponents: (tokens); use: (parts, codes) sums of the soft assignments.
   exponents are log2 of the sums of the softmax. */
void search(const Sizes *s, const float *unit, const float *book, int64_t *ids, float *entropies,
            float *exponents, float *use) {
    const int64_t parts = (s->tokens + PART - 1) / PART;
#pragma omp parallel
    {
        char *free_place = scratch(8 * s->codes + 256);
        float *scores = take(&free_place, 4 * s->codes);
        float *powers = take(&free_place, 4 * s->codes);
#pragma omp for schedule(dynamic)
        for (int64_t part = 0; part < parts; part++) {
            float *sums = use + part * s->codes;
            const int64_t end = (part + 1) * PART < s->tokens ? (part + 1) * PART : s->tokens;
            memset(sums, 0, sizeof(float) * s->codes);
            for (int64_t i = part * PART; i < end; i++) {
                float top;
                scores_of(s, unit + i * s->width, book, scores);
                ids[i] = place_of_largest(scores, s->codes, &top);
                const float offset = top * s->scale;
                vf total = splat(0), weighted = splat(0);
                for (int64_t n = 0; n < s->codes; n += LANES) {
                    const vf x = *(const vf *)(scores + n) * s->scale - offset;
                    const vf power = softened(x);
                    total += power;
                    weighted += power * x;
                    *(vf *)(powers + n) = power;
                }
                const float sum = sum_of(total), inverse = 1 / sum;
                const float exponent = __builtin_log2f(sum);
                exponents[i] = exponent + offset;
                entropies[i] = (exponent - sum_of(weighted) * inverse) * LOG_2;
                for (int64_t n = 0; n < s->codes; n += LANES)
                    *(vf *)(sums + n) += *(const vf *)(powers + n) * inverse;
            }
        }
    }
}

/* to_unit: (tokens, width); to_book: (parts, width, codes). `of_entropy` is the gradient of the sum
   of the entropies, `of_use` (codes) that of the sums of the soft assignments. */
void search_backward(const Sizes *s, const float *unit, const float *book, const float *entropies,
                     const float *exponents, const float *of_use, float of_entropy,
                     float *to_unit, float *to_book) {
    const int64_t parts = (s->tokens + PART - 1) / PART, size = s->width * s->codes;
    const float to_nats = s->scale * LOG_2;
#pragma omp parallel
    {
        char *free_place = scratch(8 * s->codes + 256);
        float *scores = take(&free_place, 4 * s->codes);
        float *powers = take(&free_place, 4 * s->codes);
#pragma omp for schedule(dynamic)
        for (int64_t part = 0; part < parts; part++) {
            float *to = to_book + part * size;
            const int64_t end = (part + 1) * PART < s->tokens ? (part + 1) * PART : s->tokens;
            memset(to, 0, sizeof(float) * size);
            for (int64_t i = part * PART; i < end; i++) {
                const float *row = unit + i * s->width;
                vf total = splat(0);
                scores_of(s, row, book, scores);
                for (int64_t n = 0; n < s->codes; n += LANES) {
                    const vf x = *(const vf *)(scores + n) * s->scale - exponents[i];
                    const vf power = softened(choose(x > 0, splat(0), x));
                    total += power * *(const vf *)(of_use + n);
                    *(vf *)(powers + n) = power;
                    *(vf *)(scores + n) = x * LOG_2;
                }
                const float rest = of_entropy * entropies[i] + sum_of(total);
                for (int64_t n = 0; n < s->codes; n += LANES) {
                    const vf slope = *(const vf *)(of_use + n) - rest
                                     - *(const vf *)(scores + n) * of_entropy;
                    *(vf *)(scores + n) = *(const vf *)(powers + n) * slope * to_nats;
                }
                for (int64_t d = 0; d < s->width; d++) {
                    vf sum = splat(0);
                    const float *codes = book + d * s->codes;
                    float *here = to + d * s->codes;
                    for (int64_t n = 0; n < s->codes; n += LANES) {
                        const vf x = *(const vf *)(scores + n);
                        sum += x * *(const vf *)(codes + n);
                        *(vf *)(here + n) += x * row[d];
                    }
                    to_unit[i * s->width + d] = sum_of(sum);
                }
            }
        }
    }
}
