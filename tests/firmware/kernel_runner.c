/* Runs single kernels on cases from a file and writes what they compute: on the host, or under an emulator.
 *
 * cases.bin: number of cases; each: operator, 17 parameters, bytes of x, second operand, weights, bias, multipliers,
 * row or table, counts, y; then these in order, y as its initial content. All words are int32. out.bin: every y. */
#include "qul_kernels.h"

#define PARTS 8

static int32_t get(void *to, uint32_t bytes);
static void put(const void *from, uint32_t bytes);

#ifdef QUL_BOARD_HOST
#include <stdio.h>
#include <stdlib.h>

static FILE *in, *out;

static int32_t get(void *to, uint32_t bytes)
{
    return fread(to, 1, bytes, in) == bytes;
}

static void put(const void *from, uint32_t bytes)
{
    (void)fwrite(from, 1, bytes, out);
}

static int32_t open_files(void)
{
    in = fopen("cases.bin", "rb");
    out = fopen("out.bin", "wb");
    return in != 0 && out != 0;
}

/* Exactly as many bytes as asked for, so that a sanitizer sees every step outside. */
static void *take(uint32_t bytes)
{
    return malloc(bytes ? bytes : 1u);
}

static void release(void **part)
{
    int32_t i;
    for (i = 0; i < PARTS; i++) {
        free(part[i]);
    }
}

static int32_t close_files(void)
{
    return fclose(in) == 0 && fclose(out) == 0;
}
#else
#include "qul_board.h"

static int32_t handles[2];

static int32_t call(int32_t operation, const void *block)
{
    register int32_t r0 __asm("r0") = operation;
    register const void *r1 __asm("r1") = block;
    __asm volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static int32_t open_one(const char *name, uint32_t length, uint32_t mode)
{
    uintptr_t block[3];
    block[0] = (uintptr_t)name;
    block[1] = mode;
    block[2] = length;
    return call(0x01, block);
}

static int32_t open_files(void)
{
    handles[0] = open_one("cases.bin", 9, 1);
    handles[1] = open_one("out.bin", 7, 5);
    return handles[0] >= 0 && handles[1] >= 0;
}

static int32_t get(void *to, uint32_t bytes)
{
    uintptr_t block[3];
    block[0] = (uintptr_t)handles[0];
    block[1] = (uintptr_t)to;
    block[2] = bytes;
    return bytes == 0 || call(0x06, block) == 0;
}

static void put(const void *from, uint32_t bytes)
{
    uintptr_t block[3];
    block[0] = (uintptr_t)handles[1];
    block[1] = (uintptr_t)from;
    block[2] = bytes;
    (void)call(0x05, block);
}

static uint8_t memory[384 * 1024] QUL_ALIGNED(16);
static uint32_t used;

static void *take(uint32_t bytes)
{
    void *at = memory + used;
    used += (bytes + 15u) & ~15u;
    if (used > sizeof memory) {
        qul_exit(99);
    }
    return at;
}

static void release(void **part)
{
    (void)part;
    used = 0;
}

static int32_t close_files(void)
{
    uintptr_t handle = (uintptr_t)handles[1];
    return call(0x02, &handle) == 0;
}
#endif

static qul_conv2d_t conv(const int32_t *v, void **part)
{
    qul_conv2d_t p;
    p.h = v[0];
    p.w = v[1];
    p.c = v[2];
    p.oh = v[3];
    p.ow = v[4];
    p.k = v[5];
    p.kh = v[6];
    p.kw = v[7];
    p.sh = v[8];
    p.sw = v[9];
    p.pt = v[10];
    p.pl = v[11];
    p.dh = v[12];
    p.dw = v[13];
    p.g = v[14];
    p.weight = (const int8_t *)part[2];
    p.bias = (const int32_t *)part[3];
    p.m = (const float *)part[4];
    p.row = (const int8_t *)part[5];
    return p;
}

static void pool(int32_t op, const int32_t *v, void **part)
{
    if (op == 5) {
        qul_maxpool_t p;
        p.h = v[0];
        p.w = v[1];
        p.c = v[2];
        p.oh = v[3];
        p.ow = v[4];
        p.k = v[5];
        p.kh = v[6];
        p.kw = v[7];
        p.sh = v[8];
        p.sw = v[9];
        p.pt = v[10];
        p.pl = v[11];
        p.row = (const int8_t *)part[5];
        qul_maxpool(&p, (const int8_t *)part[0], (int8_t *)part[7]);
    } else {
        qul_avgpool_t p;
        p.h = v[0];
        p.w = v[1];
        p.c = v[2];
        p.oh = v[3];
        p.ow = v[4];
        p.k = v[5];
        p.kh = v[6];
        p.kw = v[7];
        p.sh = v[8];
        p.sw = v[9];
        p.pt = v[10];
        p.pl = v[11];
        p.all = v[15];
        p.counts = v[16];
        p.n = (const uint16_t *)part[6];
        p.m = (const float *)part[4];
        p.row = (const int8_t *)part[5];
        qul_avgpool(&p, (const int8_t *)part[0], (int8_t *)part[7]);
    }
}

static int32_t one(void)
{
    int32_t op, v[17], i;
    uint32_t size[PARTS];
    void *part[PARTS];
    const int8_t *x;
    int8_t *y;

    if (!get(&op, 4) || !get(v, sizeof v) || !get(size, sizeof size)) {
        return 0;
    }
    for (i = 0; i < PARTS; i++) {
        part[i] = take(size[i]);
        if (!get(part[i], size[i])) {
            return 0;
        }
    }
    x = (const int8_t *)part[0];
    y = (int8_t *)part[7];
    switch (op) {
    case 0: {
        qul_conv2d_t p = conv(v, part);
        qul_conv2d(&p, x, y);
        break;
    }
    case 1: {
        qul_conv2d_grouped_t p = conv(v, part);
        qul_conv2d_grouped(&p, x, y);
        break;
    }
    case 2: {
        qul_depthwise_t p = conv(v, part);
        qul_depthwise(&p, x, y);
        break;
    }
    case 3: {
        qul_linear_t p;
        p.n = v[2];
        p.k = v[5];
        p.weight = (const int8_t *)part[2];
        p.bias = (const int32_t *)part[3];
        p.m = (const float *)part[4];
        p.row = (const int8_t *)part[5];
        qul_linear(&p, x, y);
        break;
    }
    case 4: {
        qul_add_t p;
        p.n = v[2];
        p.m = (const float *)part[4];
        p.row = (const int8_t *)part[5];
        /* v[15]: 0 apart, 1 over the first operand, 2 over the second. */
        if (v[15] != 0) {
            qul_copy(y, v[15] == 1 ? part[0] : part[1], size[7]);
        }
        qul_add(&p, v[15] == 1 ? y : x, v[15] == 2 ? y : (const int8_t *)part[1], y);
        break;
    }
    case 5:
    case 6:
        pool(op, v, part);
        break;
    default: {
        qul_requant_t p;
        p.rows = v[0];
        p.c = v[2];
        p.stride = v[5];
        p.table = (const int8_t *)part[5];
        /* v[15]: over the operand; v[16]: where in a row of y. */
        if (v[15] != 0) {
            qul_copy(y, x, size[7]);
        }
        qul_requant(&p, v[15] != 0 ? y : x, y + v[16]);
    }
    }
    put(y, size[7]);
    release(part);
    return 1;
}

int main(void)
{
    int32_t n;
    if (!open_files() || !get(&n, 4)) {
        return 98;
    }
    while (n-- > 0) {
        if (!one()) {
            return 97;
        }
    }
    return close_files() ? 0 : 96;
}
