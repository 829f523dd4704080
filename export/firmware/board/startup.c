/* Start of a Cortex-M: vector table, memory, floating point and vector unit, main. */
#include "qul_board.h"
#include "qul_rt.h"

#define EXIT_HARD_FAULT 125
#define EXIT_EXCEPTION 126
#define PAINT 0xA5A5A5A5u
/* Bytes below the stack pointer that painting leaves alone. */
#define LIVE 64u

#define CPACR (*(volatile uint32_t *)0xE000ED88u)

extern uint32_t _sidata[], _sdata[], _edata[], _sbss[], _ebss[], _estack[], end[];

int main(void);
QUL_NORETURN void qul_reset(void);
void qul_hard_fault(void);
void qul_exception(void);
void qul_tick(void);
void qul_after_main(void);
void *memcpy(void *to, const void *from, unsigned int n);
void *memmove(void *to, const void *from, unsigned int n);
void *memset(void *to, int value, unsigned int n);
int memcmp(const void *a, const void *b, unsigned int n);

typedef union {
    void (*call)(void);
    const uint32_t *stack;
} qul_vector_t;

QUL_STATIC_ASSERT(sizeof(qul_vector_t) == 4, vectors_are_words);

extern const qul_vector_t qul_vector_table[16];
const qul_vector_t qul_vector_table[16] QUL_SECTION(".vectors") = {
    {.stack = _estack},
    {qul_reset},
    {qul_exception},
    {qul_hard_fault},
    {qul_exception},
    {qul_exception},
    {qul_exception},
    {qul_exception},
    {0},
    {0},
    {0},
    {qul_exception},
    {qul_exception},
    {0},
    {qul_exception},
    {qul_tick},
};

/* A compiler may call these by itself, for a structure or an array, even where no source does. */
QUL_WEAK void *memcpy(void *to, const void *from, unsigned int n)
{
    qul_copy(to, from, n);
    return to;
}

QUL_WEAK void *memmove(void *to, const void *from, unsigned int n)
{
    uint8_t *t = (uint8_t *)to;
    const uint8_t *f = (const uint8_t *)from;
    if ((uintptr_t)t - (uintptr_t)f >= n) {
        qul_copy(to, from, n);
    } else {
        while (n-- != 0) {
            t[n] = f[n];
        }
    }
    return to;
}

QUL_WEAK void *memset(void *to, int value, unsigned int n)
{
    qul_set(to, (uint8_t)value, n);
    return to;
}

QUL_WEAK int memcmp(const void *a, const void *b, unsigned int n)
{
    const uint8_t *p = (const uint8_t *)a, *q = (const uint8_t *)b;
    unsigned int i;
    for (i = 0; i < n; i++) {
        if (p[i] != q[i]) {
            return p[i] < q[i] ? -1 : 1;
        }
    }
    return 0;
}

/* The stack from the end of .bss to below the pointer, so that the untouched part can be counted. */
static void paint(void)
{
    volatile uint32_t here;
    uint32_t *at = end, *stop;
    here = (uint32_t)(uintptr_t)&here;
    stop = (uint32_t *)(uintptr_t)((here - LIVE) & ~3u);
    while (at < stop) {
        *at++ = PAINT;
    }
}

uint32_t qul_stack_used(void);
uint32_t qul_stack_used(void)
{
    const uint32_t *at = end;
    while (at < _estack && *at == PAINT) {
        at++;
    }
    return (uint32_t)((uintptr_t)_estack - (uintptr_t)at);
}

/* Not inlined: nothing before it may use the floating point unit. */
static QUL_NOINLINE QUL_NORETURN void start(void)
{
    uint32_t *to = _sdata;
    const uint32_t *from = _sidata;
    int code;
    while (to < _edata) {
        *to++ = *from++;
    }
    for (to = _sbss; to < _ebss; to++) {
        *to = 0;
    }
    paint();
    code = main();
    qul_after_main();
    qul_exit(code);
}

void qul_reset(void)
{
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
    CPACR |= 0xFu << 20;
    __asm volatile("dsb" ::: "memory");
    __asm volatile("isb" ::: "memory");
#endif
    start();
}

void qul_hard_fault(void)
{
    qul_exit(EXIT_HARD_FAULT);
}

void qul_exception(void)
{
    qul_exit(EXIT_EXCEPTION);
}
