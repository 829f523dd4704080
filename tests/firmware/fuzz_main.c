/* Reads one file of cases and answers each with one byte; built under sanitizers.
 * words are u32: 12 numbers of box_new, folds, then bytes: digest 32, class 16, key 32, word sequence, word n, blob n;
 * then cases: word kind (0 update, 1 delta body), word n, bytes n. Answer: the return code; for an update that was
 * accepted the running blob must have the announced digest, else 200; after a refusal the old one must run or, in
 * place, nothing: else 201. A delta body is applied to the provisioned blob in buffers of exact size. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness_device.c"

int harness_delta(const uint32_t sizes[4], const uint32_t *folds, uint32_t n_folds, const uint8_t *old,
                  const uint8_t *body, uint32_t n, uint8_t *page, uint32_t page_bytes, uint8_t *out, int32_t *scratch,
                  uint32_t fail_at);

static FILE *in;

static int get(void *p, uint32_t n)
{
    return n == 0 || fread(p, n, 1, in) == 1;
}

static uint8_t *get_bytes(uint32_t *n)
{
    uint8_t *p;

    if (!get(n, 4))
        return 0;
    p = malloc(*n ? *n : 1);
    if (!p || !get(p, *n))
        exit(2);
    return p;
}

static int update_case(box *b, const uint8_t *image, const uint8_t *used, const uint8_t *update, uint32_t n)
{
    uint8_t receipt[QUL_RECEIPT], old[32], now[32];
    int rc, again;

    memcpy(b->sim.memory, image, b->sim.size);
    memcpy(b->sim.used, used, b->sim.size / b->sim.unit);
    box_power(b, QUL_SIM_NEVER, 0, 1);
    if (box_boot(b))
        return 202;
    memcpy(old, b->state.digest, 32);
    rc = box_update(b, update, n, receipt);
    again = box_boot(b);
    if (b->sim.breaches)
        return 203;
    if (again == QUL_RECOVERY)
        return b->device.scheme == &qul_in_place && rc ? rc : 201;
    qul_sha256(b->sim.memory + b->map.slot[b->state.slot], bound_bytes, now);
    if (rc == 0)
        return qul_equal(now, update + 176, 32) ? 0 : 200;
    return qul_equal(now, old, 32) ? rc : 201;
}

int main(int argc, char **argv)
{
    uint32_t numbers[12], folds[16 * 6], sequence, n, kind, total;
    uint8_t digest[32], device_class[16], key[32], *blob, *image, *used, *bytes;
    int rc;
    box *b;

    if (argc != 2 || !(in = fopen(argv[1], "rb")))
        return 2;
    if (!get(numbers, sizeof numbers) || numbers[9] > 16 || !get(folds, 24 * numbers[9]) || !get(digest, 32) ||
        !get(device_class, 16) || !get(key, 32) || !get(&sequence, 4))
        return 2;
    blob = get_bytes(&total);
    b = box_new(numbers, folds, digest, device_class, key);
    if (!b || !blob || box_provision(b, blob, sequence))
        return 2;
    image = malloc(b->sim.size);
    used = malloc(b->sim.size / b->sim.unit);
    memcpy(image, b->sim.memory, b->sim.size);
    memcpy(used, b->sim.used, b->sim.size / b->sim.unit);
    while (get(&kind, 4)) {
        bytes = get_bytes(&n);
        if (kind == 0) {
            rc = update_case(b, image, used, bytes, n);
        } else {
            uint8_t *out = malloc(total);
            rc = harness_delta(b->layout.sizes, (const uint32_t *)b->folds, b->layout.n_folds, blob, bytes, n, b->page,
                               b->sim.page, out, b->scratch, 0xffffffffu);
            free(out);
        }
        free(bytes);
        putchar(rc);
    }
    free(blob);
    free(image);
    free(used);
    box_free(b);
    fclose(in);
    return 0;
}
