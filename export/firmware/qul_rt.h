/* qunlearn runtime: fixed types, alignment, rounding. C99, no heap, no C library.
 *
 * Every float operation here is one float32 rounding. Compile with -ffp-contract=off and without -ffast-math: a fused
 * multiply-add, or excess precision, gives other codes.
 */
#ifndef QUL_RT_H
#define QUL_RT_H

#include <float.h>
#include <stdint.h>

#if defined(__FAST_MATH__)
#error "float_evaluation_method: compile without -ffast-math"
#endif

#define QUL_STATIC_ASSERT(condition, name) typedef char name[(condition) ? 1 : -1]
#define QUL_ALIGNED(n) __attribute__((aligned(n)))
#define QUL_SECTION(s) __attribute__((section(s)))
#define QUL_WEAK __attribute__((weak))
#define QUL_NORETURN __attribute__((noreturn))
#define QUL_NOINLINE __attribute__((noinline))
/* Made small, not fast. */
#define QUL_SMALL __attribute__((cold, noinline))
#define QUL_NORETURN __attribute__((noreturn))
#define QUL_NOINLINE __attribute__((noinline))
/* Made small, not fast. */
#define QUL_SMALL __attribute__((cold, noinline))

/* 16: float16 is its own type there, float32 still evaluates to float32. */
QUL_STATIC_ASSERT(FLT_EVAL_METHOD == 0 || FLT_EVAL_METHOD == 16, float_evaluation_method);
QUL_STATIC_ASSERT(sizeof(float) == 4 && FLT_MANT_DIG == 24, float_is_binary32);

/* Between the layers of a network: node i is about to run, and once with the number of nodes at the end. */
#ifndef QUL_HOOK
#ifdef QUL_HOOKS
void qul_hook(uint32_t node);
#define QUL_HOOK(node) qul_hook(node)
#else
#define QUL_HOOK(node) ((void)0)
#endif
#endif

/* Added to a float32 v, |v| < 2^22, it leaves rint(v), ties to even, in the low bits of the sum. */
#define QUL_MAGIC 12582912.0f
#define QUL_MAGIC_BITS 0x4B400000

/* Bits of a float32. */
static inline int32_t qul_bits(float v)
{
    union {
        float f;
        int32_t i;
    } u;
    u.f = v;
    return u.i;
}

/* clamp(rint(v) + z, lo, hi) for every finite or infinite v; -128 <= z, lo, hi <= 127.
 * The bits of v + QUL_MAGIC, as int32, grow with v wherever the sum is positive and are negative elsewhere, so that
 * clamping them is clamping rint(v) + z, also outside |v| < 2^22. */
static inline int32_t qul_saturate(float v, int32_t z, int32_t lo, int32_t hi)
{
    const int32_t zero = QUL_MAGIC_BITS - z;
    int32_t q = qul_bits(v + QUL_MAGIC);
    if (q < zero + lo) {
        q = zero + lo;
    }
    if (q > zero + hi) {
        q = zero + hi;
    }
    return q - zero;
}

/* rint(v), ties to even, of v clamped to [-1024, 1024]. */
int32_t qul_round(float v);

/* q[i] = clamp(rint(x[i] / s) + z, -128, 127) of n finite reals; a division, not a multiplication by 1 / s. */
void qul_quantize(const float *x, int8_t *q, uint32_t n, float s, int32_t z);

/* Index of the largest of n codes; the lowest index wins a tie. */
int32_t qul_argmax(const int8_t *y, uint32_t n);

/* n bytes; the regions do not overlap. */
void qul_copy(void *to, const void *from, uint32_t n);
void qul_set(void *to, uint8_t value, uint32_t n);

#endif
