/* Inside the kernels: the loop in which nearly all time goes, in three implementations, and windows. */
#ifndef QUL_TILE_H
#define QUL_TILE_H

#include "qul_kernels.h"

/* A row of n weights of channel 0 at w, of channel 1 `filter` codes later. */
typedef struct {
    const int8_t *w;
    int32_t filter, n;
} qul_tile_t;

/* Two places times two channels: acc[2 * i + k] += dot product of n codes at x0 (i = 0) or x1 (i = 1) with the weights of
 * channel k; int32 throughout. */
void qul_tile(int32_t *acc, const int8_t *x0, const int8_t *x1, const qul_tile_t *t);

/* What all structures with a window begin with: int32_t one after another. */
enum { QUL_H, QUL_W, QUL_C, QUL_OH, QUL_OW, QUL_K, QUL_KH, QUL_KW, QUL_SH, QUL_SW, QUL_PT, QUL_PL, QUL_DH, QUL_DW };

/* The window of one output place: its first tap, and which rows u and columns v of it are inside: from [0] to before [1]. */
typedef struct {
    const int8_t *x;
    uint16_t u[2], v[2];
} qul_place_t;

/* Place `done` in the order of y, of the window that begins at p->h; dilated: p goes on with dh and dw. */
void qul_find(const int32_t *p, int32_t dilated, const int8_t *x, int32_t done, qul_place_t *at);

/* Whether the tap (u, v) is inside. */
static inline int32_t qul_inside(const qul_place_t *at, int32_t u, int32_t v)
{
    return u >= at->u[0] && u < at->u[1] && v >= at->v[0] && v < at->v[1];
}

#endif
