/* The kernels in portable C. The other two files replace the loops that matter: qul_tile, and on Cortex-M55 more. */
#include "qul_kernels.h"
#include "qul_tile.h"

#include <stddef.h>

/* Bytes of window that are copied together where a place has taps outside or short rows. */
#define PATCH 48
/* A row of taps this long is worth a loop of its own. */
#define LONG 16

#if !defined(QUL_KERNELS_DSP) && !defined(QUL_KERNELS_MVE)

void qul_tile(int32_t *acc, const int8_t *x0, const int8_t *x1, const qul_tile_t *t)
{
    const int8_t *w0 = t->w, *w1 = w0 + t->filter;
    int32_t a = acc[0], b = acc[1], c = acc[2], d = acc[3], rows = t->rows;

    do {
        const int8_t *stop = w0 + t->n;
        while (w0 != stop) {
            const int32_t x = *x0++, v = *x1++;
            const int32_t f = *w0++, g = *w1++;
            a += x * f;
            b += x * g;
            c += v * f;
            d += v * g;
        }
        x0 += t->skip;
        x1 += t->skip;
    } while (--rows > 0);
    acc[0] = a;
    acc[1] = b;
    acc[2] = c;
    acc[3] = d;
}

#endif

/* The part that all structures with a window begin with. */
#define WINDOW_BYTES ((uint32_t)(12 * sizeof(int32_t)))
QUL_STATIC_ASSERT(offsetof(qul_conv2d_t, pl) + 4 == WINDOW_BYTES, window_of_conv2d);
QUL_STATIC_ASSERT(offsetof(qul_maxpool_t, pl) + 4 == WINDOW_BYTES, window_of_maxpool);
QUL_STATIC_ASSERT(offsetof(qul_avgpool_t, pl) + 4 == WINDOW_BYTES, window_of_avgpool);

static inline int8_t scaled(int32_t acc, float m, const int8_t *row)
{
    return (int8_t)qul_saturate((float)acc * m, row[1], row[2], row[3]);
}

void qul_find(const qul_site_t *s, int32_t done, qul_place_t *at)
{
    const qul_conv2d_t *p = s->p;
    const int32_t i = done / p->ow, j = done - i * p->ow;
    const int32_t top = i * p->sh - p->pt, left = j * p->sw - p->pl;
    at->x = s->x + (top * p->w + left) * p->c;
    qul_clip(at->u, top, p->dh, p->kh, p->h);
    qul_clip(at->v, left, p->dw, p->kw, p->w);
}

/* The window of one place, side by side, z_x outside. */
static QUL_NOINLINE void gather(const qul_site_t *s, const qul_place_t *at, int8_t *to)
{
    const qul_conv2d_t *p = s->p;
    int32_t u, v, n;
    for (u = 0; u < p->kh; u++) {
        for (v = 0; v < p->kw; v++) {
            const int8_t *from = qul_tap_at(s, at, u, v);
            const int32_t step = from != 0;
            if (!step) {
                from = p->row;
            }
            for (n = s->per; n > 0; n--) {
                *to++ = *from;
                from += step;
            }
        }
    }
}

/* A tile, tap by tap; `outside` is a row of 2 * PATCH codes z_x. */
static QUL_NOINLINE void border(const qul_site_t *s, const qul_place_t *at, qul_tile_t *t, int32_t *acc, const int8_t *outside)
{
    const qul_conv2d_t *p = s->p;
    int32_t u, v, rest;
    for (u = 0; u < p->kh; u++) {
        for (v = 0; v < p->kw; v++) {
            const int8_t *a = qul_tap_at(s, at, u, v), *b = qul_tap_at(s, at + 1, u, v);
            for (rest = s->per; rest > 0; rest -= t->n) {
                t->n = rest < 2 * PATCH ? rest : 2 * PATCH;
                qul_tile(acc, a != 0 ? a : outside, b != 0 ? b : outside, t);
                a += a != 0 ? t->n : 0;
                b += b != 0 ? t->n : 0;
                t->w += t->n;
            }
        }
    }
}

/* Group `group`: channels of x from group * c / g on, k / g channels of y. Two places and two channels at a time; an odd one
 * is computed twice. */
static QUL_NOINLINE void convolve(const qul_conv2d_t *p, int32_t group, const int8_t *x, int8_t *y)
{
    const int32_t each = p->k / p->g, total = p->oh * p->ow, first = group * each;
    int8_t patch[2 * PATCH];
    int32_t done, k, e;
    qul_site_t s;
    qul_tile_t t;

    s.p = p;
    s.per = p->c / p->g;
    s.x = x + group * s.per;
    s.line = p->kw * s.per;
    s.window = p->kh * s.line;
    s.down = p->dh * p->w * p->c;
    s.across = p->dw * p->c;
    qul_set(patch, (uint8_t)p->row[0], sizeof patch);
    for (done = 0; done < total; done += 2) {
        const int32_t more = done + 1 < total;
        int8_t *to = y + done * p->k + first;
        const int8_t *w = p->weight + first * s.window;
        const int8_t *from[2];
        qul_place_t at[2];
        int32_t direct = p->kh == 1 || s.line >= LONG || s.window > PATCH;

        direct &= s.across == s.per;
        for (e = 0; e < 2; e++) {
            qul_find(&s, done + (e & more), at + e);
            from[e] = at[e].x;
            direct &= at[e].u[1] - at[e].u[0] == p->kh && at[e].v[1] - at[e].v[0] == p->kw;
        }
        t.rows = p->kh;
        t.n = s.line;
        t.skip = s.down - s.line;
        if (!direct) {
            t.rows = 1;
            t.n = s.window;
            if (s.window <= PATCH) {
                direct = 1;
                for (e = 0; e < 2; e++) {
                    gather(&s, at + e, patch + e * PATCH);
                    from[e] = patch + e * PATCH;
                }
            }
        }
        for (k = 0; k < each; k += 2) {
            const int32_t pair = k + 1 < each, c = first + k;
            int32_t acc[4];
            acc[0] = acc[2] = p->bias[c];
            acc[1] = acc[3] = p->bias[c + pair];
            t.w = w;
            t.filter = pair ? s.window : 0;
            if (direct) {
                qul_tile(acc, from[0], from[1], &t);
            } else {
                border(&s, at, &t, acc, patch);
            }
            for (e = 0; e < 4; e++) {
                const int32_t o = e & pair;
                to[(e >> 1 & more) * p->k + k + o] = scaled(acc[e], p->m[c + o], p->row);
            }
            w += 2 * s.window;
        }
    }
}

void qul_conv2d(const qul_conv2d_t *p, const int8_t *x, int8_t *y)
{
    convolve(p, 0, x, y);
}

void qul_conv2d_grouped(const qul_conv2d_grouped_t *p, const int8_t *x, int8_t *y)
{
    int32_t group;
    for (group = 0; group < p->g; group++) {
        convolve(p, group, x, y);
    }
}

/* A convolution with one tap on one place. */
void qul_linear(const qul_linear_t *p, const int8_t *x, int8_t *y)
{
    qul_conv2d_t q;
    q.h = q.w = q.oh = q.ow = q.kh = q.kw = q.sh = q.sw = q.dh = q.dw = q.g = 1;
    q.pt = q.pl = 0;
    q.c = p->n;
    q.k = p->k;
    q.weight = p->weight;
    q.bias = p->bias;
    q.m = p->m;
    q.row = p->row;
    convolve(&q, 0, x, y);
}

#ifndef QUL_KERNELS_MVE

/* Four channels at a time where channel k of y is channel k of x; the last four may overlap those before. */
void qul_depthwise(const qul_depthwise_t *p, const int8_t *x, int8_t *y)
{
    const int32_t each = p->k / p->c, total = p->oh * p->ow, n = each == 1 && p->k >= 4 ? 4 : 1;
    int32_t done, k, u, v, e;
    int8_t outside[4];
    qul_site_t s;
    qul_place_t at;

    s.p = p;
    s.x = x;
    s.down = p->dh * p->w * p->c;
    s.across = p->dw * p->c;
    qul_set(outside, (uint8_t)p->row[0], 4);
    for (done = 0; done < total; done++) {
        qul_find(&s, done, &at);
        for (k = 0; k < p->k; k += n) {
            const int8_t *w;
            int32_t a, b = 0, c = 0, d = 0, from, acc[4];
            if (k + n > p->k) {
                k = p->k - n;
            }
            w = p->weight + k;
            from = n == 4 ? k : k / each;
            a = p->bias[k];
            for (u = 0; u < p->kh; u++) {
                for (v = 0; v < p->kw; v++) {
                    const int8_t *q = qul_tap_at(&s, &at, u, v);
                    q = q != 0 ? q + from : outside;
                    a += q[0] * w[0];
                    if (n == 4) {
                        b += q[1] * w[1];
                        c += q[2] * w[2];
                        d += q[3] * w[3];
                    }
                    w += p->k;
                }
            }
            acc[0] = a;
            if (n == 4) {
                acc[1] = b + p->bias[k + 1];
                acc[2] = c + p->bias[k + 2];
                acc[3] = d + p->bias[k + 3];
            }
            for (e = 0; e < n; e++) {
                y[k + e] = scaled(acc[e], p->m[k + e], p->row);
            }
        }
        y += p->k;
    }
}

void qul_add(const qul_add_t *p, const int8_t *a, const int8_t *b, int8_t *y)
{
    const int32_t za = p->row[0], zb = p->row[1], z = p->row[2], lo = p->row[3], hi = p->row[4];
    const float ma = p->m[0], mb = p->m[1];
    int32_t i;
    for (i = 0; i < p->n; i++) {
        const float left = (float)(a[i] - za) * ma;
        const float right = (float)(b[i] - zb) * mb;
        y[i] = (int8_t)qul_saturate(left + right, z, lo, hi);
    }
}

#endif

/* Average, or the largest code if there are no counts. */
static QUL_NOINLINE void pool(const qul_avgpool_t *p, const int8_t *x, int8_t *y)
{
    int32_t done, c, u, v;
    qul_conv2d_t q;
    qul_site_t s;
    qul_place_t at;

    qul_copy(&q, p, WINDOW_BYTES);
    q.dh = q.dw = 1;
    s.p = &q;
    s.x = x;
    for (done = 0; done < p->oh * p->ow; done++) {
        int32_t rows, columns, which = 0;
        qul_find(&s, done, &at);
        rows = at.u[1] - at.u[0];
        columns = at.v[1] - at.v[0];
        while (which < p->counts - 1 && p->n[which] != (p->all ? p->kh * p->kw : rows * columns)) {
            which++;
        }
        for (c = 0; c < p->c; c++) {
            const int8_t *from = at.x + (at.u[0] * p->w + at.v[0]) * p->c + c;
            int32_t best = p->row[2], sum = -rows * columns * p->row[0];
            for (u = 0; u < rows; u++) {
                for (v = 0; v < columns; v++) {
                    best = *from > best ? *from : best;
                    sum += *from;
                    from += p->c;
                }
                from += (p->w - columns) * p->c;
            }
            *y++ = p->counts != 0 ? scaled(sum, p->m[which], p->row) : (int8_t)(best < p->row[3] ? best : p->row[3]);
        }
    }
}

void qul_maxpool(const qul_maxpool_t *p, const int8_t *x, int8_t *y)
{
    qul_avgpool_t q;
    qul_copy(&q, p, WINDOW_BYTES);
    q.counts = 0;
    q.row = p->row;
    pool(&q, x, y);
}

void qul_avgpool(const qul_avgpool_t *p, const int8_t *x, int8_t *y)
{
    pool(p, x, y);
}

void qul_requant(const qul_requant_t *p, const int8_t *x, int8_t *y)
{
    int32_t i, j;
    for (i = 0; i < p->rows; i++) {
        for (j = 0; j < p->c; j++) {
            y[j] = p->table[*x++ + 128];
        }
        y += p->stride;
    }
}
