/* Entry points for the tests: the delta applier into a plain buffer. Folds come as rows of six words. */
#include "qul_delta.h"

typedef struct {
    uint8_t *out;
    uint32_t next, total, fail_at;
} target;

static int emit(void *ctx, uint32_t offset, const uint8_t *page, uint32_t n)
{
    target *t = ctx;
    uint32_t i;

    if (offset != t->next || n > t->total - offset)
        return 99; /* pages come in order, without gaps, inside the blob */
    if (offset == t->fail_at)
        return 20;
    for (i = 0; i < n; i++)
        t->out[offset + i] = page[i];
    t->next = offset + n;
    return 0;
}

int harness_delta(const uint32_t sizes[4], const uint32_t *folds, uint32_t n_folds, const uint8_t *old,
                  const uint8_t *body, uint32_t n, uint8_t *page, uint32_t page_bytes, uint8_t *out, int32_t *scratch,
                  uint32_t fail_at)
{
    qul_layout_t layout = {{0, 0, 0, 0}, 0, 0, {0}};
    qul_sink_t sink;
    target t;
    uint32_t i;
    int rc;

    for (i = 0; i < 4; i++)
        layout.sizes[i] = sizes[i];
    layout.n_folds = n_folds;
    layout.folds = (const qul_fold_t *)folds;
    t.out = out;
    t.next = 0;
    t.total = qul_layout_bytes(&layout);
    t.fail_at = fail_at;
    sink.page = page;
    sink.page_bytes = page_bytes;
    sink.done = 0;
    sink.emit = emit;
    sink.ctx = &t;
    rc = qul_delta_apply(&layout, old, body, n, &sink, scratch);
    return rc ? rc : t.next == t.total ? 0 : 98;
}
