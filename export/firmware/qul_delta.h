/* The delta body of an update (format: docs/bundle.md): old blob + body = new blob, page by page, in order.
 * A blob is four sections: W int8, B int32, M float32 seen as 32 bits, P int8; numbers are little-endian. */
#ifndef QUL_DELTA_H
#define QUL_DELTA_H

#include <stdint.h>

/* A weight tensor whose changes move the folded bias of its channels. Offsets are elements of their section. */
typedef struct {
    uint32_t weight, count;   /* in W */
    uint32_t channels, inner; /* channel = i / inner, or i mod channels if inner is 0 */
    uint32_t bias;            /* in B, one element a channel */
    uint32_t zero;            /* index of the input's zero point in P */
} qul_fold_t;

/* Made by code generation. Folds are sorted by weight and by bias and do not overlap. */
typedef struct {
    uint32_t sizes[4];        /* elements of W, B, M, P */
    uint32_t n_folds;
    const qul_fold_t *folds;
    uint8_t digest[32];
} qul_layout_t;

/* Takes one finished page: `n` bytes at byte `offset` of the new blob (the last page may be short). Returns 0, or a code
 * that ends the work and is returned. It may overwrite the old blob up to offset + n, not beyond. */
typedef int (*qul_page_fn)(void *ctx, uint32_t offset, const uint8_t *page, uint32_t n);

typedef struct {
    uint8_t *page;            /* page_bytes of memory */
    uint32_t page_bytes;      /* a multiple of 4 */
    uint32_t done;            /* the first `done` bytes (whole pages) of the old blob are already new: not judged */
    qul_page_fn emit;
    void *ctx;
} qul_sink_t;

/* Bytes of a blob, or 0 if the table is not sound; bytes of scratch. */
uint32_t qul_layout_bytes(const qul_layout_t *layout);
uint32_t qul_layout_scratch(const qul_layout_t *layout);

/* Apply. `scratch` has qul_layout_scratch() bytes. Returns 0; 14 if the body is not exactly what an encoder writes for
 * this layout (pages may have been emitted by then); or what `emit` returned. */
int qul_delta_apply(const qul_layout_t *layout, const uint8_t *old_blob, const uint8_t *body, uint32_t n,
                    const qul_sink_t *sink, int32_t *scratch);

#endif
