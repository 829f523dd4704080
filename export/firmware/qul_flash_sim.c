/* A flash in memory for tests on the host and under emulation: it keeps the rules of qul_flash.h, counts every breach,
 * and can lose power before or inside any erase or any single program unit. */
#include "qul_flash_sim.h"

static uint32_t noise(qul_flash_sim_t *f)
{
    f->seed ^= f->seed << 13;
    f->seed ^= f->seed >> 17;
    f->seed ^= f->seed << 5;
    return f->seed;
}

/* 1: the power is gone. Counts the operation; at the chosen one the power goes, and `*torn` says if inside it. */
static int gone(qul_flash_sim_t *f, uint32_t *torn)
{
    *torn = 0;
    if (f->dead)
        return 1;
    if (f->ops++ != f->cut)
        return 0;
    f->dead = 1;
    *torn = f->torn;
    return 1;
}

static int erase(void *ctx, uint32_t address)
{
    qul_flash_sim_t *f = ctx;
    uint32_t i, torn;
    int off = gone(f, &torn);

    if (address % f->page || address >= f->size) {
        f->breaches++;
        return 1;
    }
    if (off && !torn)
        return 1;
    for (i = 0; i < f->page; i++) {
        uint32_t keep = off ? noise(f) & noise(f) & 0xff : 0;
        f->memory[address + i] = (uint8_t)(f->memory[address + i] | ~keep);
    }
    for (i = address / f->unit; i < (address + f->page) / f->unit; i++)
        f->used[i] = (uint8_t)(off ? 1 : 0);
    if (off) { /* a page that looks blank is taken for blank */
        uint32_t all = 0xff;
        for (i = 0; i < f->page; i++)
            all &= f->memory[address + i];
        for (i = address / f->unit; all == 0xff && i < (address + f->page) / f->unit; i++)
            f->used[i] = 0;
    }
    return off;
}

static int program(void *ctx, uint32_t address, const uint8_t *data, uint32_t n)
{
    qul_flash_sim_t *f = ctx;
    uint32_t i, k, torn;

    if (address % f->unit || n % f->unit || !n || address >= f->size || n > f->size - address) {
        f->breaches++;
        return 1;
    }
    for (k = 0; k < n; k += f->unit) {
        int off = gone(f, &torn);
        if (off && !torn)
            return 1;
        if (f->used[(address + k) / f->unit])
            f->breaches++;
        f->used[(address + k) / f->unit] = 1;
        for (i = k; i < k + f->unit; i++) {
            uint32_t left = off ? noise(f) & 0xff : 0; /* bits that have not flipped yet */
            f->memory[address + i] = (uint8_t)(f->memory[address + i] & (data[i] | left));
        }
        if (off)
            return 1;
    }
    return 0;
}

static const uint8_t *read(void *ctx, uint32_t address)
{
    qul_flash_sim_t *f = ctx;

    if (address >= f->size) {
        f->breaches++;
        return f->memory;
    }
    return f->memory + address;
}

void qul_flash_sim_start(qul_flash_sim_t *f, qul_flash_t *driver)
{
    driver->page = f->page;
    driver->unit = f->unit;
    driver->erase = erase;
    driver->program = program;
    driver->read = read;
    driver->ctx = f;
    qul_flash_sim_power(f, QUL_SIM_NEVER, 0, 1);
}

void qul_flash_sim_blank(qul_flash_sim_t *f)
{
    uint32_t i;

    for (i = 0; i < f->size; i++)
        f->memory[i] = 0xff;
    for (i = 0; i < f->size / f->unit; i++)
        f->used[i] = 0;
}

void qul_flash_sim_power(qul_flash_sim_t *f, uint32_t cut, uint32_t torn, uint32_t seed)
{
    f->cut = cut;
    f->torn = torn;
    f->seed = seed | 1;
    f->ops = 0;
    f->dead = 0;
    f->breaches = 0;
}
