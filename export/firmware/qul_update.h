/* Signed updates of the blob on a device: verification, two slots or one with a journal, boot, receipt.
 *
 *   qul_boot()    at every start, before the first inference: settles what a power cut left, picks the model to run
 *   qul_update()  with a whole update.bin in memory
 *
 * Both work on one qul_device_t, a constant table that names everything that is the device's own. */
#ifndef QUL_UPDATE_H
#define QUL_UPDATE_H

#include "qul_crypto.h"
#include "qul_delta.h"
#include "qul_flash.h"

/* Return codes. */
#define QUL_DONE 0
#define QUL_SIGNATURE 10 /* the key is not known, or the signature does not hold */
#define QUL_MALFORMED 11
#define QUL_PAYLOAD 12   /* body or self-test are not those that were signed */
#define QUL_BASE 13      /* the running blob is not the delta's base */
#define QUL_APPLY 14     /* the delta cannot be applied */
#define QUL_TARGET 15    /* the new blob is not the announced one */
#define QUL_SEQUENCE 16  /* not newer, or a delta from another sequence */
#define QUL_SELFTEST 17
#define QUL_CLASS 18
#define QUL_LAYOUT 19    /* other layout, other size, too little scratch, or not allowed in place */
#define QUL_FLASH 20
#define QUL_VERSION 21
#define QUL_RECOVERY 30  /* qul_boot() only: nothing to run; send a full update, or the interrupted one again */

#define QUL_HEADER 288
#define QUL_RECEIPT 100
#define QUL_BLOB_MAX 0x800000u
#define QUL_VECTORS_MAX 64u

/* The generated model. */
typedef struct {
    int (*bind)(const void *blob); /* 0 = fine */
    int8_t *(*input)(void);
    void (*run)(void);
    const int8_t *(*output)(void);
    uint32_t inputs, outputs;      /* codes */
    uint32_t zero;                 /* index in P of the zero point of the input */
} qul_model_t;

typedef struct qul_device qul_device_t;

/* What runs now. */
typedef struct {
    uint32_t ready;       /* 1: a whole, confirmed model is bound */
    uint32_t slot, meta;  /* its slot and its record */
    uint32_t sequence;    /* 0 = none */
    uint32_t counter;     /* highest sequence ever confirmed */
    uint8_t digest[32];   /* of its blob */
    uint32_t erased;      /* pages erased by the last call */
    uint32_t blank;       /* old pages read back: 0 all blank, 1 not blank, 2 not done */
} qul_state_t;

/* The signed header; fields in the container's order. */
typedef struct {
    uint32_t kind, flags, sequence, base_sequence, blob, body, selftest, scratch;
    const uint8_t *bytes; /* the whole update */
} qul_header_t;

/* Two slots, or one with a journal; name one in the table, the other is then not linked. */
typedef struct {
    int (*boot)(const qul_device_t *d, qul_state_t *s);
    int (*admit)(const qul_device_t *d, const qul_state_t *s, const qul_header_t *h);
    int (*install)(const qul_device_t *d, qul_state_t *s, const qul_header_t *h, uint32_t *passed);
} qul_scheme_t;
extern const qul_scheme_t qul_two_slots, qul_in_place;

struct qul_device {
    const qul_scheme_t *scheme;
    const qul_flash_t *flash;
    const qul_map_t *map;
    const qul_layout_t *layout;
    const qul_model_t *model;
    uint8_t device_class[16];
    const uint8_t (*keys)[32];
    uint32_t n_keys;
    /* qul_ed25519_verify, or the platform's own under the same rule. */
    int (*verify)(const uint8_t sig[64], const uint8_t key[32], const uint8_t *prefix, uint32_t prefix_n,
                  const uint8_t *message, uint32_t n);
    uint32_t update_max;    /* bytes of update.bin that fit the place where it is received */
    uint8_t *page;          /* one flash page of memory */
    int32_t *scratch;       /* the model's arena serves: it is idle during an update */
    uint32_t scratch_bytes;
    uint32_t careful;       /* 1: recompute the blob's digest at every start */
    /* MAC over 68 bytes by a device key; null = receipts are unauthenticated (zeros). */
    void (*mac)(void *ctx, const uint8_t *data, uint32_t n, uint8_t out[32]);
    void *ctx;
};

/* 0: s->ready, the model is bound. 30: recovery, no inference. 20: the flash failed; if s->ready, an old slot is not
 * erased yet. Must be called again after a failure. */
int qul_boot(const qul_device_t *d, qul_state_t *s);

/* V1 to V5 only; nothing is written. 0 or a code. */
int qul_check(const qul_device_t *d, const qul_state_t *s, const uint8_t *update, uint32_t n, qul_header_t *h);

/* The whole update; `update` stays readable until the end. 0 = the new model is bound and confirmed, the old one is
 * erased; else the code of the first failed step. With two slots the old model goes on after every failure; in place it
 * does unless a page was changed (s->ready says). `receipt` is filled in either case; it may be null. */
int qul_update(const qul_device_t *d, qul_state_t *s, const uint8_t *update, uint32_t n, uint8_t *receipt);

/* At the factory: writes `blob` as the confirmed model of `sequence` into blank flash; 20 if it is not blank. */
int qul_provision(const qul_device_t *d, qul_state_t *s, const uint8_t *blob, uint32_t sequence);

/* Shared by the schemes (qul_slots.c, qul_update.c). */
typedef struct {
    uint32_t confirmed; /* record right, CONFIRMED, not RETIRED */
    uint32_t valid;     /* VALID is set */
    uint32_t sequence;
    uint8_t digest[32];
} qul_meta_t;

uint32_t qul_log_cells(const qul_device_t *d);
uint32_t qul_cell(const qul_device_t *d);
uint32_t qul_crc32(const uint8_t *p, uint32_t n);
uint32_t qul_get32(const uint8_t *p);
void qul_put32(uint8_t *p, uint32_t v);
const uint8_t *qul_read(const qul_device_t *d, uint32_t address);
int qul_is_blank(const qul_device_t *d, uint32_t address, uint32_t n);
int qul_erase(const qul_device_t *d, qul_state_t *s, uint32_t address, uint32_t pages);
int qul_write_page(const qul_device_t *d, uint32_t address, const uint8_t *page, uint32_t n);
int qul_write_cell(const qul_device_t *d, uint32_t address, const uint8_t data[16]);
void qul_meta_read(const qul_device_t *d, uint32_t which, qul_meta_t *m);
int qul_meta_write(const qul_device_t *d, uint32_t which, uint32_t sequence, const uint8_t digest[32]);
int qul_meta_confirm(const qul_device_t *d, uint32_t which);
int qul_meta_retire(const qul_device_t *d, uint32_t which);
uint32_t qul_counter_read(const qul_device_t *d);
int qul_counter_raise(const qul_device_t *d, qul_state_t *s, uint32_t sequence);
int qul_blob_is(const qul_device_t *d, uint32_t slot, const uint8_t digest[32]);
int qul_decode(const qul_device_t *d, const qul_header_t *h, const uint8_t *old, uint32_t done, qul_page_fn emit,
               void *ctx);
int qul_self_test(const qul_device_t *d, const uint8_t *blob, const uint8_t *block, uint32_t n, uint32_t *passed);

#endif
