/* Cores with a dual 16-bit multiply-accumulate: M4, M7, M33. */
#include "qul_kernels.h"

#ifdef QUL_KERNELS_DSP

#include "qul_tile.h"

#include <arm_acle.h>

/* The compiler's own spelling: with -fno-builtin a call by name stays a call. */
static inline uint32_t word(const int8_t *p)
{
    uint32_t v;
    __builtin_memcpy(&v, p, 4);
    return v;
}

/* Four codes at a time, as pairs of int16: bytes 0 and 2, bytes 1 and 3. Their products fit: 2 * 128 * 128 < 2^31. */
#define EVEN(v) __sxtb16((int32_t)(v))
#define ODD(v) __sxtb16((int32_t)((v) >> 8))

void qul_tile(int32_t *acc, const int8_t *x0, const int8_t *x1, const qul_tile_t *t)
{
    const int8_t *w0 = t->w, *w1 = w0 + t->filter, *stop = w0 + (t->n & 3);
    int32_t a = acc[0], b = acc[1], c = acc[2], d = acc[3];

    while (w0 != stop) {
        const int32_t x = *x0++, v = *x1++, f = *w0++, g = *w1++;
        a += x * f;
        b += x * g;
        c += v * f;
        d += v * g;
    }
    stop = t->w + t->n;
    while (w0 != stop) {
        const uint32_t x = word(x0), v = word(x1);
        const int32_t xe = EVEN(x), xo = ODD(x), ve = EVEN(v), vo = ODD(v);
        uint32_t f = word(w0);
        int32_t e = EVEN(f), o = ODD(f);
        a = __smlad(xe, e, a);
        c = __smlad(ve, e, c);
        a = __smlad(xo, o, a);
        c = __smlad(vo, o, c);
        f = word(w1);
        e = EVEN(f);
        o = ODD(f);
        b = __smlad(xe, e, b);
        d = __smlad(ve, e, d);
        b = __smlad(xo, o, b);
        d = __smlad(vo, o, d);
        x0 += 4;
        x1 += 4;
        w0 += 4;
        w1 += 4;
    }
    acc[0] = a;
    acc[1] = b;
    acc[2] = c;
    acc[3] = d;
}

#endif
