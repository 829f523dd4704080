/* qunlearn runtime. */
#include "qul_rt.h"

int32_t qul_round(float v)
{
    if (v < -1024.0f) {
        v = -1024.0f;
    }
    if (v > 1024.0f) {
        v = 1024.0f;
    }
    return qul_bits(v + QUL_MAGIC) - QUL_MAGIC_BITS;
}

void qul_quantize(const float *x, int8_t *q, uint32_t n, float s, int32_t z)
{
    uint32_t i;
    for (i = 0; i < n; i++) {
        q[i] = (int8_t)qul_saturate(x[i] / s, z, -128, 127);
    }
}

int32_t qul_argmax(const int8_t *y, uint32_t n)
{
    uint32_t i, best = 0;
    for (i = 1; i < n; i++) {
        if (y[i] > y[best]) {
            best = i;
        }
    }
    return (int32_t)best;
}

void qul_copy(void *to, const void *from, uint32_t n)
{
    uint8_t *t = (uint8_t *)to;
    const uint8_t *f = (const uint8_t *)from;
    while (n-- != 0) {
        *t++ = *f++;
    }
}

void qul_set(void *to, uint8_t value, uint32_t n)
{
    uint8_t *t = (uint8_t *)to;
    while (n-- != 0) {
        *t++ = value;
    }
}
