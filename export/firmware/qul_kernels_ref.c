/* The kernels in portable C: what runs on the host and on Cortex-M3, and what the other two files are compared with. */
#include "qul_kernels.h"

#if !defined(QUL_KERNELS_DSP) && !defined(QUL_KERNELS_MVE)

static int8_t scaled(int32_t acc, float m, const int8_t *row)
{
    return (int8_t)qul_saturate((float)acc * m, row[1], row[2], row[3]);
}

static int32_t dot(const int8_t *x, const int8_t *w, int32_t n)
{
    int32_t acc = 0;
    for (; n >= 4; n -= 4) {
        acc += x[0] * w[0];
        acc += x[1] * w[1];
        acc += x[2] * w[2];
        acc += x[3] * w[3];
        x += 4;
        w += 4;
    }
    for (; n > 0; n--) {
        acc += *x++ * *w++;
    }
    return acc;
}

static int32_t sum(const int8_t *w, int32_t n)
{
    int32_t acc = 0;
    while (n-- > 0) {
        acc += *w++;
    }
    return acc;
}

/* Group `group`: channels of x from group * c / g on, k / g channels of y. */
static void convolve(const qul_conv2d_t *p, int32_t group, const int8_t *x, int8_t *y)
{
    const int32_t per = p->c / p->g, each = p->k / p->g, z = p->row[0];
    const int32_t tap = per, line = p->kw * per, next = p->dw * p->c;
    const int32_t whole = per == p->c && p->dw == 1;
    int32_t i, j, k, u, v;

    x += group * per;
    y += group * each;
    for (i = 0; i < p->oh; i++) {
        const int32_t top = i * p->sh - p->pt;
        const int32_t u0 = qul_first_tap(top, p->dh, p->kh), u1 = qul_end_tap(top, p->dh, p->kh, p->h);
        for (j = 0; j < p->ow; j++) {
            const int32_t left = j * p->sw - p->pl;
            const int32_t v0 = qul_first_tap(left, p->dw, p->kw), v1 = qul_end_tap(left, p->dw, p->kw, p->w);
            const int8_t *w = p->weight + group * each * p->kh * line;
            for (k = group * each; k < (group + 1) * each; k++) {
                int32_t acc = p->bias[k];
                for (u = 0; u < p->kh; u++) {
                    if (u < u0 || u >= u1 || v0 >= v1) {
                        acc += z * sum(w, line);
                    } else {
                        const int8_t *from = x + (top + u * p->dh) * p->w * p->c + (left + v0 * p->dw) * p->c;
                        if (whole) {
                            acc += dot(from, w + v0 * tap, (v1 - v0) * tap);
                        } else {
                            for (v = v0; v < v1; v++) {
                                acc += dot(from, w + v * tap, tap);
                                from += next;
                            }
                        }
                        acc += z * (sum(w, v0 * tap) + sum(w + v1 * tap, line - v1 * tap));
                    }
                    w += line;
                }
                y[k - group * each] = scaled(acc, p->m[k], p->row);
            }
            y += p->k;
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

void qul_depthwise(const qul_depthwise_t *p, const int8_t *x, int8_t *y)
{
    const int32_t each = p->k / p->c, z = p->row[0];
    int32_t i, j, c, e, u, v;

    for (i = 0; i < p->oh; i++) {
        const int32_t top = i * p->sh - p->pt;
        for (j = 0; j < p->ow; j++) {
            const int32_t left = j * p->sw - p->pl;
            for (c = 0; c < p->c; c++) {
                for (e = 0; e < each; e++) {
                    const int32_t k = c * each + e;
                    const int8_t *w = p->weight + k;
                    int32_t acc = p->bias[k];
                    for (u = 0; u < p->kh; u++) {
                        const int32_t r = top + u * p->dh;
                        for (v = 0; v < p->kw; v++) {
                            const int32_t s = left + v * p->dw;
                            if (r >= 0 && r < p->h && s >= 0 && s < p->w) {
                                acc += x[(r * p->w + s) * p->c + c] * *w;
                            } else {
                                acc += z * *w;
                            }
                            w += p->k;
                        }
                    }
                    *y++ = scaled(acc, p->m[k], p->row);
                }
            }
        }
    }
}

void qul_linear(const qul_linear_t *p, const int8_t *x, int8_t *y)
{
    const int8_t *w = p->weight;
    int32_t k;
    for (k = 0; k < p->k; k++) {
        y[k] = scaled(p->bias[k] + dot(x, w, p->n), p->m[k], p->row);
        w += p->n;
    }
}

#endif

#ifndef QUL_KERNELS_MVE

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

void qul_maxpool(const qul_maxpool_t *p, const int8_t *x, int8_t *y)
{
    const int32_t lo = p->row[2], hi = p->row[3], line = p->w * p->c;
    int32_t i, j, c, u, v;

    for (i = 0; i < p->oh; i++) {
        const int32_t top = i * p->sh - p->pt;
        const int32_t u0 = qul_first_tap(top, 1, p->kh), u1 = qul_end_tap(top, 1, p->kh, p->h);
        for (j = 0; j < p->ow; j++) {
            const int32_t left = j * p->sw - p->pl;
            const int32_t v0 = qul_first_tap(left, 1, p->kw), v1 = qul_end_tap(left, 1, p->kw, p->w);
            for (c = 0; c < p->c; c++) {
                int32_t best = lo;
                for (u = u0; u < u1; u++) {
                    const int8_t *at = x + (top + u) * line + (left + v0) * p->c + c;
                    for (v = v0; v < v1; v++) {
                        if (*at > best) {
                            best = *at;
                        }
                        at += p->c;
                    }
                }
                *y++ = (int8_t)(best < hi ? best : hi);
            }
        }
    }
}

void qul_avgpool(const qul_avgpool_t *p, const int8_t *x, int8_t *y)
{
    const int32_t z = p->row[0], line = p->w * p->c;
    int32_t i, j, c, u, v;

    for (i = 0; i < p->oh; i++) {
        const int32_t top = i * p->sh - p->pt;
        const int32_t u0 = qul_first_tap(top, 1, p->kh), u1 = qul_end_tap(top, 1, p->kh, p->h);
        for (j = 0; j < p->ow; j++) {
            const int32_t left = j * p->sw - p->pl;
            const int32_t v0 = qul_first_tap(left, 1, p->kw), v1 = qul_end_tap(left, 1, p->kw, p->w);
            const int32_t inside = u0 < u1 && v0 < v1 ? (u1 - u0) * (v1 - v0) : 0;
            const int32_t taps = p->all ? p->kh * p->kw : inside;
            int32_t which = 0;
            while (which < p->counts - 1 && p->n[which] != taps) {
                which++;
            }
            for (c = 0; c < p->c; c++) {
                int32_t acc = -inside * z;
                for (u = u0; u < u1; u++) {
                    const int8_t *at = x + (top + u) * line + (left + v0) * p->c + c;
                    for (v = v0; v < v1; v++) {
                        acc += *at;
                        at += p->c;
                    }
                }
                *y++ = (int8_t)qul_saturate((float)acc * p->m[which], p->row[1], p->row[2], p->row[3]);
            }
        }
    }
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
