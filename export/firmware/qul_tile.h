/* Inside the kernels: the loop in which nearly all time goes, in three implementations, and windows. */
#ifndef QUL_TILE_H
#define QUL_TILE_H

#include "qul_kernels.h"

/* Weights of channel 0 begin at w, of channel 1 `filter` codes later; each has rows * n, without gaps. A row of the input
 * begins n + skip codes after the one before. */
typedef struct {
    const int8_t *w;
    int32_t filter, rows, n, skip;
} qul_tile_t;

/* Two places times two channels: acc[2 * i + k] += dot product of the rows at x0 (i = 0) or x1 (i = 1) with the weights of
 * channel k. rows >= 1; int32 throughout. */
void qul_tile(int32_t *acc, const int8_t *x0, const int8_t *x1, const qul_tile_t *t);

/* A convolution, or one group of it: codes of a tap, a row of taps and a window; steps in x from tap to tap. */
typedef struct {
    const qul_conv2d_t *p;
    const int8_t *x;
    int32_t per, line, window, down, across;
} qul_site_t;

/* The window of one output place: its first tap, and which rows u and columns v of it are inside. */
typedef struct {
    const int8_t *x;
    int32_t u[2], v[2];
} qul_place_t;

/* Place `done` in the order of y. */
void qul_find(const qul_site_t *s, int32_t done, qul_place_t *at);

/* The tap (u, v) of a place, or 0 if it is outside. */
static inline const int8_t *qul_tap_at(const qul_site_t *s, const qul_place_t *at, int32_t u, int32_t v)
{
    if (u < at->u[0] || u >= at->u[1] || v < at->v[0] || v >= at->v[1]) {
        return 0;
    }
    return at->x + u * s->down + v * s->across;
}

#endif
