/* The kernels in portable C. The other two files replace the loops that matter: qul_tile, and on Cortex-M55 more. */
#include "qul_kernels.h"
#include "qul_tile.h"

#include <stddef.h>

/* Bytes of window that are copied together where a place has taps outside or short rows. */
#define PATCH 40
#define OUTSIDE 48
/* A row of taps this long is worth a loop of its own. */
#define LONG 16

#if !defined(QUL_KERNELS_DSP) && !defined(QUL_KERNELS_MVE)

void qul_tile(int32_t *acc, const int8_t *x0, const int8_t *x1, const qul_tile_t *t)
{
    const int8_t *w0 = t->w, *w1 = w0 + t->filter, *stop = w0 + t->n;
    int32_t a = acc[0], b = acc[1], c = acc[2], d = acc[3];

    while (w0 != stop) {
        const int32_t x = *x0++, v = *x1++, f = *w0++, g = *w1++;
        a += x * f;
        b += x * g;
        c += v * f;
        d += v * g;
    }
    acc[0] = a;
    acc[1] = b;
    acc[2] = c;
    acc[3] = d;
}

#endif

#define WINDOW(type, field, index) \
    QUL_STATIC_ASSERT(offsetof(type, field) == 4 * (index), type##_##field##_is_where_qul_find_reads_it)
WINDOW(qul_conv2d_t, h, QUL_H);
WINDOW(qul_conv2d_t, dw, QUL_DW);
WINDOW(qul_maxpool_t, h, QUL_H);
WINDOW(qul_maxpool_t, pl, QUL_PL);
WINDOW(qul_avgpool_t, h, QUL_H);
WINDOW(qul_avgpool_t, pl, QUL_PL);

static inline int8_t scaled(int32_t acc, float m, const int8_t *row)
{
    return (int8_t)qul_saturate((float)acc * m, row[1], row[2], row[3]);
}

/* Which of n taps, d apart, the first at `at`, lie in [0, size). */
static QUL_NOINLINE void clip(uint16_t *span, int32_t at, int32_t d, int32_t n, int32_t size)
{
    int32_t i = 0;
    for (; i < n && at < 0; i++) {
        at += d;
    }
    span[0] = (uint16_t)i;
    for (; i < n && at < size; i++) {
        at += d;
    }
    span[1] = (uint16_t)i;
}

QUL_NOINLINE void qul_find(const int32_t *p, int32_t dilated, const int8_t *x, int32_t done, qul_place_t *at)
{
    const int32_t i = done / p[QUL_OW], j = done - i * p[QUL_OW];
    const int32_t top = i * p[QUL_SH] - p[QUL_PT], left = j * p[QUL_SW] - p[QUL_PL];
    at->x = x + (top * p[QUL_W] + left) * p[QUL_C];
    clip(at->u, top, dilated ? p[QUL_DH] : 1, p[QUL_KH], p[QUL_H]);
    clip(at->v, left, dilated ? p[QUL_DW] : 1, p[QUL_KW], p[QUL_W]);
}

/* A convolution, or one group of it, at work on two places: their windows are cut into rows * columns pieces of t.n codes,
 * `down` and `across` apart. */
typedef struct {
    const qul_conv2d_t *p;
    const int8_t *x;
    int32_t done, end, per, window, down, across;
    uint16_t rows, columns, whole, more;
    const int8_t *from[2];
    qul_tile_t t;
    int32_t acc[4];
    union {
        /* Both windows side by side, z_x outside, if they are short. */
        int8_t patch[2][PATCH];
        /* Else a row of z_x for pieces outside, unless `whole`. `at` does not begin in the first patch. */
        struct {
            int8_t outside[OUTSIDE];
            qul_place_t at[2];
        } cut;
    } u;
} job_t;

QUL_STATIC_ASSERT(OUTSIDE >= PATCH, the_first_patch_is_written_while_places_are_read);

/* The window of one place, side by side, z_x outside. */
static QUL_NOINLINE void gather(job_t *s, int32_t e)
{
    const qul_place_t place = s->u.cut.at[e], *at = &place;
    int8_t *to = s->u.patch[e];
    const qul_conv2d_t *p = s->p;
    int32_t u, v, n;
    for (u = 0; u < p->kh; u++) {
        for (v = 0; v < p->kw; v++) {
            const int32_t step = qul_inside(at, u, v);
            const int8_t *from = step ? at->x + u * s->down + v * s->across : p->row;
            for (n = s->per; n > 0; n--) {
                *to++ = *from;
                from += step;
            }
        }
    }
    s->from[e] = s->u.patch[e];
}

/* Finds the next two places (an odd one is computed twice) and cuts their windows; 1 if these are to be
 * gathered. */
static QUL_NOINLINE int32_t begin(job_t *s)
{
    const qul_conv2d_t *p = s->p;
    const int32_t line = p->kw * s->per, dense = s->across == s->per;
    int32_t e;

    s->more = s->done + 1 < p->oh * p->ow;
    s->whole = 1;
    for (e = 0; e < 2; e++) {
        qul_place_t *at = s->u.cut.at + e;
        qul_find(&p->h, 1, s->x, s->done + (e & s->more), at);
        s->from[e] = at->x;
        if (at->u[1] - at->u[0] != p->kh || at->v[1] - at->v[0] != p->kw) {
            s->whole = 0;
        }
    }
    s->rows = (uint16_t)p->kh;
    s->columns = 1;
    s->t.n = line;
    if (s->window <= PATCH && (!s->whole || !dense || (p->kh != 1 && line < LONG))) {
        s->rows = s->whole = 1;
        s->t.n = s->window;
        return 1;
    } else if (!s->whole || !dense) {
        s->columns = (uint16_t)p->kw;
        s->t.n = s->per;
        qul_set(s->u.cut.outside, (uint8_t)p->row[0], OUTSIDE);
    }
    return 0;
}

static inline const int8_t *piece(const job_t *s, int32_t e, int32_t u, int32_t v, int32_t at)
{
    if (!s->whole && !qul_inside(s->u.cut.at + e, u, v)) {
        return s->u.cut.outside;
    }
    return s->from[e] + u * s->down + v * s->across + at;
}

/* The tile of two places and two channels, piece by piece. */
static QUL_NOINLINE void pieces(job_t *s)
{
    const int32_t n = s->t.n;
    int32_t u, v, at;
    for (u = 0; u < s->rows; u++) {
        for (v = 0; v < s->columns; v++) {
            for (at = 0; at < n; at += s->t.n) {
                s->t.n = s->whole || n - at < OUTSIDE ? n - at : OUTSIDE;
                qul_tile(s->acc, piece(s, 0, u, v, at), piece(s, 1, u, v, at), &s->t);
                s->t.w += s->t.n;
            }
        }
    }
    s->t.n = n;
}

/* Accumulators of n channels of one place to codes. */
static QUL_NOINLINE void store(const int32_t *acc, int32_t n, const float *m, const int8_t *row, int8_t *y)
{
    do {
        *y++ = scaled(*acc++, *m++, row);
    } while (--n > 0);
}

/* Group `group`: channels of x from group * c / g on, k / g channels of y. */
static QUL_NOINLINE void convolve(const qul_conv2d_t *p, int32_t group, const int8_t *x, int8_t *y)
{
    const int32_t each = p->k / p->g;
    job_t s;

    s.p = p;
    s.per = p->c / p->g;
    s.x = x + group * s.per;
    s.window = p->kh * p->kw * s.per;
    s.down = p->dh * p->w * p->c;
    s.across = p->dw * p->c;
    s.end = (group + 1) * each;
    for (s.done = 0; s.done < p->oh * p->ow; s.done += 2) {
        int32_t c;
        if (begin(&s)) {
            gather(&s, 0);
            gather(&s, 1);
        }
        for (c = s.end - each; c < s.end; c += 2) {
            const int32_t pair = c + 1 < s.end;
            int8_t *to = y + c;
            s.acc[0] = s.acc[2] = p->bias[c];
            s.acc[1] = s.acc[3] = p->bias[c + pair];
            s.t.w = p->weight + c * s.window;
            s.t.filter = pair ? s.window : 0;
            if (s.rows * s.columns == 1) {
                qul_tile(s.acc, s.from[0], s.from[1], &s.t);
            } else {
                pieces(&s);
            }
            store(s.acc, 1 + pair, p->m + c, p->row, to);
            if (s.more) {
                store(s.acc + 2, 1 + pair, p->m + c, p->row, to + p->k);
            }
        }
        y += 2 * p->k;
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

void qul_linear(const qul_linear_t *p, const int8_t *x, int8_t *y)
{
    int32_t k;
    qul_tile_t t;
    t.n = p->n;
    t.w = p->weight;
    for (k = 0; k < p->k; k += 2) {
        const int32_t pair = k + 1 < p->k;
        int32_t acc[4];
        acc[0] = acc[2] = p->bias[k];
        acc[1] = acc[3] = p->bias[k + pair];
        t.filter = pair ? p->n : 0;
        qul_tile(acc, x, x, &t);
        store(acc, 1 + pair, p->m + k, p->row, y + k);
        t.w += 2 * p->n;
    }
}

#ifndef QUL_KERNELS_MVE

/* One channel of one place. */
static QUL_SMALL int32_t one_channel(const qul_depthwise_t *p, const qul_place_t *at, int32_t k)
{
    const int8_t *w = p->weight + k;
    int32_t u, v, acc = p->bias[k];
    for (u = 0; u < p->kh; u++) {
        const int8_t *q = at->x + u * p->dh * p->w * p->c + k / (p->k / p->c);
        for (v = 0; v < p->kw; v++) {
            acc += *w * (qul_inside(at, u, v) ? *q : p->row[0]);
            q += p->dw * p->c;
            w += p->k;
        }
    }
    return acc;
}

/* Four channels of one place where channel k of y is channel k of x; `outside`: four codes z_x. */
static QUL_NOINLINE void four_channels(
    const qul_depthwise_t *p, const qul_place_t *at, int32_t k, const int8_t *outside, int32_t *acc)
{
    const int8_t *w = p->weight + k;
    const int32_t step = p->k, across = p->dw * p->c, v0 = at->v[0];
    int32_t u, v, a, b, c, d;
    a = p->bias[k];
    b = p->bias[k + 1];
    c = p->bias[k + 2];
    d = p->bias[k + 3];
    for (u = 0; u < p->kh; u++) {
        const uint32_t columns = u >= at->u[0] && u < at->u[1] ? at->v[1] - (uint32_t)v0 : 0;
        const int8_t *q = at->x + u * p->dh * p->w * p->c + k;
        for (v = -v0; v < p->kw - v0; v++) {
            const int8_t *from = (uint32_t)v < columns ? q : outside;
            a += from[0] * w[0];
            b += from[1] * w[1];
            c += from[2] * w[2];
            d += from[3] * w[3];
            w += step;
            q += across;
        }
    }
    acc[0] = a;
    acc[1] = b;
    acc[2] = c;
    acc[3] = d;
}

void qul_depthwise(const qul_depthwise_t *p, const int8_t *x, int8_t *y)
{
    const int32_t n = p->k == p->c && p->k >= 4 ? 4 : 1, total = p->oh * p->ow;
    int32_t done, k, acc[4];
    int8_t outside[4];
    qul_place_t at;

    qul_set(outside, (uint8_t)p->row[0], 4);
    for (done = 0; done < total; done++) {
        qul_find(&p->h, 1, x, done, &at);
        for (k = 0; k < p->k; k += n) {
            if (n == 1) {
                acc[0] = one_channel(p, &at, k);
            } else {
                /* The last four may overlap those before. */
                k = k + 4 > p->k ? p->k - 4 : k;
                four_channels(p, &at, k, outside, acc);
            }
            store(acc, n, p->m + k, p->row, y + k);
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

/* The window that begins at p->h; the average with the counts of `a`, or the largest code if there is no `a`. */
static QUL_SMALL void pool(const int32_t *p, const qul_avgpool_t *a, const int8_t *row, const int8_t *x, int8_t *y)
{
    const int32_t channels = p[QUL_C];
    int32_t done, c, u, v;
    qul_place_t at;

    for (done = 0; done < p[QUL_OH] * p[QUL_OW]; done++) {
        int32_t rows, columns, which = 0;
        qul_find(p, 0, x, done, &at);
        rows = at.u[1] - at.u[0];
        columns = at.v[1] - at.v[0];
        if (a != 0) {
            const int32_t taps = a->all ? a->kh * a->kw : rows * columns;
            while (which < a->counts - 1 && a->n[which] != taps) {
                which++;
            }
        }
        for (c = 0; c < channels; c++) {
            int32_t best = row[2], sum = -rows * columns * row[0];
            for (u = 0; u < rows; u++) {
                const int8_t *from = at.x + ((at.u[0] + u) * p[QUL_W] + at.v[0]) * channels + c;
                for (v = 0; v < columns; v++) {
                    best = *from > best ? *from : best;
                    sum += *from;
                    from += channels;
                }
            }
            *y++ = a != 0 ? scaled(sum, a->m[which], row) : (int8_t)(best < row[3] ? best : row[3]);
        }
    }
}

void qul_maxpool(const qul_maxpool_t *p, const int8_t *x, int8_t *y)
{
    pool(&p->h, 0, p->row, x, y);
}

void qul_avgpool(const qul_avgpool_t *p, const int8_t *x, int8_t *y)
{
    pool(&p->h, p, p->row, x, y);
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
