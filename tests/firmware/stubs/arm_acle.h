/* The dual multiply-accumulate in plain C, so that its kernels run on the host under sanitizers. */
#ifndef STUB_ARM_ACLE_H
#define STUB_ARM_ACLE_H

#include <stdint.h>

static inline int32_t half(int32_t v, int32_t high)
{
    int32_t part = (int32_t)(((uint32_t)v >> (high ? 16 : 0)) & 0xFFFFu);
    return part < 0x8000 ? part : part - 0x10000;
}

static inline int32_t byte(int32_t v, int32_t at)
{
    int32_t part = (int32_t)(((uint32_t)v >> at) & 0xFFu);
    return part < 0x80 ? part : part - 0x100;
}

static inline int32_t __sxtb16(int32_t v)
{
    return (int32_t)(((uint32_t)byte(v, 0) & 0xFFFFu) | (uint32_t)byte(v, 16) << 16);
}

static inline int32_t __smlad(int32_t a, int32_t b, int32_t acc)
{
    return acc + half(a, 0) * half(b, 0) + half(a, 1) * half(b, 1);
}

#endif
