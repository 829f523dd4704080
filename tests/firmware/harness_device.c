/* A device in memory for the tests: simulated flash, a toy model whose outputs depend on every byte of the blob. */
#include <stdlib.h>
#include <string.h>

#include "qul_flash_sim.h"
#include "qul_update.h"

#define INPUTS 12u
#define OUTPUTS 5u
#define SLOT_PAGES_MAX 64u

static const uint8_t *bound;
static uint32_t bound_bytes, refuse_bind;
static int8_t input[INPUTS], output[OUTPUTS];

static int bind(const void *blob)
{
    if (refuse_bind)
        return 1;
    bound = blob;
    return 0;
}

static int8_t *get_input(void)
{
    return input;
}

static void run(void)
{
    uint32_t k, i, h;

    for (k = 0; k < OUTPUTS; k++) {
        h = k + 1;
        for (i = 0; i < bound_bytes; i++)
            h = (h ^ bound[i]) * 16777619u;
        for (i = 0; i < INPUTS; i++)
            h = (h ^ (uint8_t)input[i]) * 16777619u;
        output[k] = (int8_t)(uint8_t)(h >> 24);
    }
}

static const int8_t *get_output(void)
{
    return output;
}

static void mac(void *ctx, const uint8_t *data, uint32_t n, uint8_t out[32])
{
    (void)ctx;
    qul_sha256(data, n, out); /* stands for a keyed one */
}

typedef struct {
    qul_flash_sim_t sim;
    qul_flash_t driver;
    qul_map_t map;
    qul_layout_t layout;
    qul_fold_t folds[16];
    qul_model_t model;
    qul_device_t device;
    qul_state_t state;
    uint8_t keys[2][32];
    uint8_t *page;
    int32_t *scratch;
} box;

/* numbers: scheme (0 two slots, 1 in place), page, unit, slot pages, log pages, W, B, M, P, folds, keys, careful */
box *box_new(const uint32_t *numbers, const uint32_t *folds, const uint8_t *digest, const uint8_t *device_class,
             const uint8_t *keys)
{
    box *b = calloc(1, sizeof *b);
    uint32_t size = numbers[1], at = 0, i;

    if (!b)
        return 0;
    b->map.slot_pages = numbers[3];
    b->map.slot[0] = 0;
    at = numbers[3] * size;
    b->map.slot[1] = at;
    if (!numbers[0])
        at += numbers[3] * size;
    for (i = 0; i < 2; i++, at += size)
        b->map.meta[i] = at;
    for (i = 0; i < 2; i++, at += size)
        b->map.counter[i] = at;
    b->map.log = at;
    b->map.log_pages = numbers[4];
    at += numbers[4] * size;
    b->map.data = at;
    at += size;
    b->sim.size = at;
    b->sim.page = size;
    b->sim.unit = numbers[2];
    b->sim.memory = malloc(at);
    b->sim.used = malloc(at / numbers[2]);
    qul_flash_sim_start(&b->sim, &b->driver);
    qul_flash_sim_blank(&b->sim);
    for (i = 0; i < 4; i++)
        b->layout.sizes[i] = numbers[5 + i];
    b->layout.n_folds = numbers[9];
    b->layout.folds = b->folds;
    for (i = 0; i < numbers[9]; i++)
        memcpy(b->folds + i, folds + 6 * i, sizeof(qul_fold_t));
    memcpy(b->layout.digest, digest, 32);
    memcpy(b->keys, keys, 32 * numbers[10]);
    b->model.bind = bind;
    b->model.input = get_input;
    b->model.run = run;
    b->model.output = get_output;
    b->model.inputs = INPUTS;
    b->model.outputs = OUTPUTS;
    b->device.scheme = numbers[0] ? &qul_in_place : &qul_two_slots;
    b->device.flash = &b->driver;
    b->device.map = &b->map;
    b->device.layout = &b->layout;
    b->device.model = &b->model;
    memcpy(b->device.device_class, device_class, 16);
    b->device.keys = (const uint8_t(*)[32])b->keys;
    b->device.n_keys = numbers[10];
    b->device.verify = qul_ed25519_verify;
    b->device.update_max = 1u << 20;
    b->page = malloc(size);
    b->device.page = b->page;
    b->device.scratch_bytes = qul_layout_scratch(&b->layout);
    b->scratch = malloc(b->device.scratch_bytes + 4);
    b->device.scratch = b->scratch;
    b->device.careful = numbers[11];
    b->device.mac = mac;
    bound_bytes = qul_layout_bytes(&b->layout);
    return b;
}

void box_free(box *b)
{
    free(b->sim.memory);
    free(b->sim.used);
    free(b->page);
    free(b->scratch);
    free(b);
}

void box_power(box *b, uint32_t cut, uint32_t torn, uint32_t seed)
{
    qul_flash_sim_power(&b->sim, cut, torn, seed);
}

int box_boot(box *b)
{
    bound_bytes = qul_layout_bytes(&b->layout);
    bound = 0;
    return qul_boot(&b->device, &b->state);
}

int box_update(box *b, const uint8_t *update, uint32_t n, uint8_t *receipt)
{
    bound_bytes = qul_layout_bytes(&b->layout);
    return qul_update(&b->device, &b->state, update, n, receipt);
}

int box_provision(box *b, const uint8_t *blob, uint32_t sequence)
{
    bound_bytes = qul_layout_bytes(&b->layout);
    return qul_provision(&b->device, &b->state, blob, sequence);
}

/* ready, slot, sequence, counter, erased, blank, operations, breaches, dead, bound to the running slot, flash bytes */
void box_state(const box *b, uint32_t *out)
{
    out[0] = b->state.ready;
    out[1] = b->state.slot;
    out[2] = b->state.sequence;
    out[3] = b->state.counter;
    out[4] = b->state.erased;
    out[5] = b->state.blank;
    out[6] = b->sim.ops;
    out[7] = b->sim.breaches;
    out[8] = b->sim.dead;
    out[9] = b->state.ready && bound == b->sim.memory + b->map.slot[b->state.slot];
    out[10] = b->sim.size;
}

uint8_t *box_memory(box *b)
{
    return b->sim.memory;
}

uint8_t *box_used(box *b)
{
    return b->sim.used;
}

void box_refuse_bind(uint32_t on)
{
    refuse_bind = on;
}

/* What the model answers on `blob` for one row of input codes. */
void box_outputs(const uint8_t *blob, uint32_t n, const int8_t *x, int8_t *y)
{
    const uint8_t *old = bound;
    uint32_t bytes = bound_bytes;

    bound = blob;
    bound_bytes = n;
    memcpy(input, x, INPUTS);
    run();
    memcpy(y, output, OUTPUTS);
    bound = old;
    bound_bytes = bytes;
}
