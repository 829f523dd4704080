/* Console, exit and instruction counts under an emulator, by Arm semihosting. */
#define SYS_WRITE0 0x04
#define SYS_EXIT_EXTENDED 0x20
#define ADP_STOPPED_APPLICATION_EXIT 0x20026u

static int32_t semihosting(int32_t operation, const void *block)
{
    register int32_t r0 __asm("r0") = operation;
    register const void *r1 __asm("r1") = block;
    __asm volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void qul_print(const char *text)
{
    (void)semihosting(SYS_WRITE0, text);
}

void qul_print_number(uint32_t v)
{
    char text[11];
    uint32_t i = 10;
    text[i] = 0;
    do {
        text[--i] = (char)('0' + (int)(v % 10u));
        v /= 10u;
    } while (v != 0);
    qul_print(text + i);
}

void qul_exit(int code)
{
    uint32_t block[2];
    block[0] = ADP_STOPPED_APPLICATION_EXIT;
    block[1] = (uint32_t)code;
    for (;;) {
        (void)semihosting(SYS_EXIT_EXTENDED, block);
    }
}

#ifdef QUL_HOOKS

#define SYST_CSR (*(volatile uint32_t *)0xE000E010u)
#define SYST_RVR (*(volatile uint32_t *)0xE000E014u)
#define SYST_CVR (*(volatile uint32_t *)0xE000E018u)
#define ICSR (*(volatile uint32_t *)0xE000ED04u)
#define PENDING (1u << 26)
#define TICKS (1u << 24)
#define HOOKS 512u

/* Of the last run: ticks at each hook. */
static uint32_t at_hook[HOOKS], hooks;
static volatile uint32_t wraps;
static uint32_t running;

void qul_tick(void)
{
    wraps++;
}

/* Ticks since the counter began. It has 24 bits and counts down; at 0 it interrupts, one tick later it reloads. */
static uint32_t now(void)
{
    uint32_t before, value, since;
    do {
        before = wraps;
        value = SYST_CVR;
        since = value == 0 ? 0 : TICKS - value;
        if ((ICSR & PENDING) != 0 && since < TICKS / 2) {
            before++;
            break;
        }
    } while (before != wraps);
    return before * TICKS + since;
}

void qul_hook(uint32_t node)
{
    if (!running) {
        SYST_RVR = TICKS - 1u;
        SYST_CVR = 0;
        SYST_CSR = 7u;
        running = 1;
    }
    if (node < HOOKS) {
        hooks = node + 1u;
        at_hook[node] = now();
    }
}

#else

void qul_tick(void)
{
    qul_exit(EXIT_EXCEPTION);
}

#endif

/* Lines for whoever runs the emulator: bytes of stack, ticks between hooks. */
void qul_after_main(void)
{
    const uint32_t used = qul_stack_used();
#ifdef QUL_HOOKS
    uint32_t i;
    const uint32_t last = hooks;
#endif
    qul_print("qul stack ");
    qul_print_number(used);
    qul_print("\n");
#ifdef QUL_HOOKS
    for (i = 1; i < last; i++) {
        qul_print("qul ticks ");
        qul_print_number(at_hook[i] - at_hook[i - 1u]);
        qul_print("\n");
    }
    /* What a hook costs by itself, 64 of them. */
    {
        uint32_t first, begin = now();
        for (first = 0; first < 64u; first++) {
            qul_hook(0);
        }
        qul_print("qul hooks64 ");
        qul_print_number(now() - begin);
        qul_print("\n");
    }
#endif
}
