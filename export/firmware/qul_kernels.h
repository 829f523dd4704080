/* The eight kernels of a generated network: the whole interface between its code and their implementation.
 *
 * Maps are [H][W][C] of int8 codes; a sequence is a map with one row, a vector one with one place. Each kernel exists in
 * portable C (qul_kernels_ref.c), for cores with a dual 16-bit multiply-accumulate (qul_kernels_dsp.c) and for the vector
 * extension of Cortex-M55 (qul_kernels_mve.c), and gives the same bits in all of them. The choice is made by the
 * compiler's own feature macros; QUL_KERNELS_REF asks for the portable ones.
 *
 * With z_x, z_y, lo, hi from `row`, and requant(v) = clamp(rint(v) + z_y, lo, hi), ties to even:
 *
 *   conv, linear   requant(float(acc) * m[k]),  acc = bias[k] + sum of w * x over the window, a tap outside counting as z_x.
 *                  `bias` is folded: b[k] - z_x * sum of w over the whole window of k. |acc| and all partial sums < 2^31.
 *   add            requant(float(a - z_a) * m[0] + float(b - z_b) * m[1])
 *   maxpool        clamp(largest code inside the map, lo, hi)
 *   avgpool        requant(float(sum of x - z_x inside the map) * m[j]), n[j] = taps counted
 *   requant        table[x + 128]
 *
 * y does not overlap x, but add and requant (with stride == c) may write over an operand.
 */
#ifndef QUL_KERNELS_H
#define QUL_KERNELS_H

#include "qul_rt.h"

#ifndef QUL_KERNELS_REF
#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 3) == 3
#define QUL_KERNELS_MVE 1
#elif defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP == 1
#define QUL_KERNELS_DSP 1
#endif
#endif

/* Convolution. Input [h][w][c], output [oh][ow][k], window [kh][kw], strides, padding at top and left, dilations,
 * groups g. The padding at bottom and right follows from oh and ow. weight: [k][kh][kw][c / g]; depthwise (c == g):
 * [kh][kw][k]. row: z_x, z_y, lo, hi. */
typedef struct {
    int32_t h, w, c, oh, ow, k;
    int32_t kh, kw, sh, sw, pt, pl;
    int32_t dh, dw, g;
    const int8_t *weight;
    const int32_t *bias;
    const float *m;
    const int8_t *row;
} qul_conv2d_t;

/* 1 < g < c. */
typedef qul_conv2d_t qul_conv2d_grouped_t;

/* c == g; k is a multiple of c (depth multiplier k / c). */
typedef qul_conv2d_t qul_depthwise_t;

/* weight: [k][n]. row: z_x, z_y, lo, hi. */
typedef struct {
    int32_t n, k;
    const int8_t *weight;
    const int32_t *bias;
    const float *m;
    const int8_t *row;
} qul_linear_t;

/* n codes. row: z_a, z_b, z_y, lo, hi. */
typedef struct {
    int32_t n;
    const float *m;
    const int8_t *row;
} qul_add_t;

/* k == c. row: z_x, z_y, lo, hi. */
typedef struct {
    int32_t h, w, c, oh, ow, k;
    int32_t kh, kw, sh, sw, pt, pl;
    const int8_t *row;
} qul_maxpool_t;

/* k == c; the global average is one window of the whole map. all: taps outside the map count too. n: the `counts`
 * numbers of taps that occur, ascending. row: z_x, z_y, lo, hi. */
typedef struct {
    int32_t h, w, c, oh, ow, k;
    int32_t kh, kw, sh, sw, pt, pl;
    int32_t all, counts;
    const uint16_t *n;
    const float *m;
    const int8_t *row;
} qul_avgpool_t;

/* `rows` rows of c codes; those of the output begin `stride` codes apart (the parts of a concatenation). table: 256. */
typedef struct {
    int32_t rows, c, stride;
    const int8_t *table;
} qul_requant_t;

void qul_conv2d(const qul_conv2d_t *p, const int8_t *x, int8_t *y);
void qul_conv2d_grouped(const qul_conv2d_grouped_t *p, const int8_t *x, int8_t *y);
void qul_depthwise(const qul_depthwise_t *p, const int8_t *x, int8_t *y);
void qul_linear(const qul_linear_t *p, const int8_t *x, int8_t *y);
void qul_add(const qul_add_t *p, const int8_t *a, const int8_t *b, int8_t *y);
void qul_maxpool(const qul_maxpool_t *p, const int8_t *x, int8_t *y);
void qul_avgpool(const qul_avgpool_t *p, const int8_t *x, int8_t *y);
void qul_requant(const qul_requant_t *p, const int8_t *x, int8_t *y);

#endif
