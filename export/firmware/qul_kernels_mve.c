/* The vector extension of Cortex-M55: integers and float32, the last vector of a row cut by a predicate. */
#include "qul_kernels.h"

#ifdef QUL_KERNELS_MVE

#include "qul_tile.h"

#include <arm_mve.h>

/* Each load of activations serves two channels, each load of weights two places. */
void qul_tile(int32_t *acc, const int8_t *x0, const int8_t *x1, const qul_tile_t *t)
{
    const int8_t *w0 = t->w, *w1 = w0 + t->filter, *stop = w0 + (t->n & ~15);
    const int32_t rest = t->n & 15;
    int32_t a = acc[0], b = acc[1], c = acc[2], d = acc[3];

    while (w0 != stop) {
        const int8x16_t x = vldrbq_s8(x0), v = vldrbq_s8(x1), f = vldrbq_s8(w0), g = vldrbq_s8(w1);
        a = vmladavaq_s8(a, x, f);
        b = vmladavaq_s8(b, x, g);
        c = vmladavaq_s8(c, v, f);
        d = vmladavaq_s8(d, v, g);
        x0 += 16;
        x1 += 16;
        w0 += 16;
        w1 += 16;
    }
    if (rest != 0) {
        /* Lanes outside load 0. */
        const mve_pred16_t live = vctp8q((uint32_t)rest);
        const int8x16_t x = vldrbq_z_s8(x0, live), v = vldrbq_z_s8(x1, live);
        const int8x16_t f = vldrbq_z_s8(w0, live), g = vldrbq_z_s8(w1, live);
        a = vmladavaq_s8(a, x, f);
        b = vmladavaq_s8(b, x, g);
        c = vmladavaq_s8(c, v, f);
        d = vmladavaq_s8(d, v, g);
    }
    acc[0] = a;
    acc[1] = b;
    acc[2] = c;
    acc[3] = d;
}

/* The rule of qul_saturate in four lanes. */
static inline void store(int8_t *y, float32x4_t v, const int8_t *row, mve_pred16_t live)
{
    const int32_t zero = QUL_MAGIC_BITS - row[0];
    int32x4_t q = vreinterpretq_s32_f32(vaddq_n_f32(v, QUL_MAGIC));
    q = vmaxq_s32(q, vdupq_n_s32(zero + row[1]));
    q = vminq_s32(q, vdupq_n_s32(zero + row[2]));
    vstrbq_p_s32(y, vsubq_n_s32(q, zero), live);
}

/* Four channels of y at a time. */
void qul_depthwise(const qul_depthwise_t *p, const int8_t *x, int8_t *y)
{
    const int32_t each = p->k / p->c, total = p->oh * p->ow, z = p->row[0], across = p->dw * p->c;
    int32_t done, k, u, v;
    qul_place_t at;

    for (done = 0; done < total; done++) {
        qul_find(&p->h, 1, x, done, &at);
        for (k = 0; k < p->k; k += 4) {
            const mve_pred16_t live = vctp32q((uint32_t)(p->k - k));
            const int8_t *w = p->weight + k;
            int32x4_t acc = vldrwq_z_s32(p->bias + k, live);
            /* Lane l of y is channel k + l; in x, k + l too, or (k + l) / each. */
            uint32x4_t of = vdupq_n_u32(0);
            int32_t first = k;
            if (each != 1) {
                of = vsetq_lane_u32((uint32_t)(k / each), of, 0);
                of = vsetq_lane_u32((uint32_t)((k + 1) / each), of, 1);
                of = vsetq_lane_u32((uint32_t)((k + 2) / each), of, 2);
                of = vsetq_lane_u32((uint32_t)((k + 3) / each), of, 3);
                first = 0;
            }
            for (u = 0; u < p->kh; u++) {
                const uint32_t columns = u >= at.u[0] && u < at.u[1] ? (uint32_t)at.v[1] - at.v[0] : 0;
                const int8_t *q = at.x + u * p->dh * p->w * p->c + first;
                for (v = -at.v[0]; v < p->kw - at.v[0]; v++) {
                    const int32x4_t f = vldrbq_z_s32(w, live);
                    int32x4_t now = vdupq_n_s32(z);
                    if ((uint32_t)v < columns) {
                        now = each == 1 ? vldrbq_z_s32(q, live) : vldrbq_gather_offset_z_s32(q, of, live);
                    }
                    acc = vaddq_s32(acc, vmulq_s32(f, now));
                    w += p->k;
                    q += across;
                }
            }
            store(y + k, vmulq_f32(vcvtq_f32_s32(acc), vldrwq_z_f32(p->m + k, live)), p->row + 1, live);
        }
        y += p->k;
    }
}

void qul_add(const qul_add_t *p, const int8_t *a, const int8_t *b, int8_t *y)
{
    const int32_t za = p->row[0], zb = p->row[1];
    const float ma = p->m[0], mb = p->m[1];
    int32_t i;
    for (i = 0; i < p->n; i += 4) {
        const mve_pred16_t live = vctp32q((uint32_t)(p->n - i));
        const float32x4_t left = vcvtq_f32_s32(vsubq_n_s32(vldrbq_z_s32(a + i, live), za));
        const float32x4_t right = vcvtq_f32_s32(vsubq_n_s32(vldrbq_z_s32(b + i, live), zb));
        store(y + i, vaddq_f32(vmulq_n_f32(left, ma), vmulq_n_f32(right, mb)), p->row + 2, live);
    }
}

#endif
