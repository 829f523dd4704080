/* Semihosting calls: the operation in r0, its arguments behind r1. */
#include "files.h"

enum { OPEN = 1, CLOSE = 2, WRITE = 5, READ = 6, LENGTH = 12 };

static int32_t call(int32_t operation, const void *block)
{
    register int32_t r0 __asm("r0") = operation;
    register const void *r1 __asm("r1") = block;

    __asm volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

/* Mode 1 reads, 5 writes; negative if it cannot be opened. */
static int32_t file_open(const char *name, uint32_t mode)
{
    uintptr_t block[3];
    uintptr_t n = 0;

    while (name[n] != 0) {
        n++;
    }
    block[0] = (uintptr_t)name;
    block[1] = mode;
    block[2] = n;
    return call(OPEN, block);
}

/* 1 iff all bytes moved. */
static int move(int32_t operation, int32_t file, uintptr_t data, uint32_t n)
{
    uintptr_t block[3];

    block[0] = (uintptr_t)file;
    block[1] = data;
    block[2] = n;
    return n == 0 || call(operation, block) == 0;
}

uint32_t file_load(const char *name, uint8_t *data, uint32_t most)
{
    int32_t file = file_open(name, 1);
    int32_t n;

    if (file < 0) {
        return 0;
    }
    n = call(LENGTH, &file);
    if (n < 0 || (uint32_t)n > most || !move(READ, file, (uintptr_t)data, (uint32_t)n)) {
        n = 0;
    }
    (void)call(CLOSE, &file);
    return (uint32_t)n;
}

int file_save(const char *name, const uint8_t *data, uint32_t n)
{
    int32_t file = file_open(name, 5);
    int ok;

    if (file < 0) {
        return 0;
    }
    ok = move(WRITE, file, (uintptr_t)data, n);
    (void)call(CLOSE, &file);
    return ok;
}
