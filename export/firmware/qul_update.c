/* The order of an update: V1 to V5, the scheme's own work (apply, V6, V7, commit, erase), the receipt. Nothing of the
 * update is looked at deeper, and nothing is written, before the step ahead has passed. */
#include "qul_update.h"

#define HEAD_CLASS 80
#define HEAD_LAYOUT 112
#define HEAD_BASE 144
#define HEAD_TARGET 176
#define HEAD_PAYLOAD 208
#define HEAD_KEY 272

/* V1 */
static int sizes(const qul_device_t *d, const uint8_t *u, uint32_t n, qul_header_t *h)
{
    uint32_t i, any = 0;

    h->bytes = u;
    h->sequence = 0;
    if (n < QUL_HEADER || n > d->update_max)
        return QUL_MALFORMED;
    if (u[64] != 'Q' || u[65] != 'U' || u[66] != 'P' || u[67] != '1')
        return QUL_MALFORMED;
    if (u[68] != 1 || u[69] != 0)
        return QUL_VERSION;
    h->kind = u[70];
    h->flags = u[71];
    h->base_sequence = qul_get32(u + 76);
    h->blob = qul_get32(u + 96);
    h->body = qul_get32(u + 100);
    h->selftest = qul_get32(u + 104);
    h->scratch = qul_get32(u + 108);
    if (h->kind > 1 || (h->flags & ~1u) != 2)
        return QUL_MALFORMED;
    for (i = 280; i < QUL_HEADER; i++)
        any |= u[i];
    if (any || h->blob > QUL_BLOB_MAX || h->scratch > QUL_BLOB_MAX || h->body > n - QUL_HEADER)
        return QUL_MALFORMED;
    if (h->selftest != n - QUL_HEADER - h->body || h->selftest > 8 + QUL_VECTORS_MAX * (4 + d->model->outputs))
        return QUL_MALFORMED;
    if (h->kind) {
        for (i = HEAD_BASE; i < HEAD_TARGET; i++)
            any |= u[i];
        if (any || h->base_sequence || h->body != h->blob)
            return QUL_MALFORMED;
    }
    return 0;
}

/* V2 */
static int signature(const qul_device_t *d, const uint8_t *u)
{
    static const uint8_t domain[18] = "QUNLEARN-UPDATE-1";
    uint8_t digest[32];
    uint32_t i;

    for (i = 0; i < d->n_keys; i++) {
        qul_sha256(d->keys[i], 32, digest);
        if (qul_equal(digest, u + HEAD_KEY, 8))
            return d->verify(u, d->keys[i], domain, 18, u + 64, QUL_HEADER - 64) ? 0 : QUL_SIGNATURE;
    }
    return QUL_SIGNATURE;
}

/* V3 */
static int admission(const qul_device_t *d, const qul_state_t *s, qul_header_t *h)
{
    const uint8_t *u = h->bytes;
    uint32_t newest = s->counter > s->sequence ? s->counter : s->sequence;

    h->sequence = qul_get32(u + 72);
    if (!qul_equal(u + HEAD_CLASS, d->device_class, 16))
        return QUL_CLASS;
    if (!qul_equal(u + HEAD_LAYOUT, d->layout->digest, 32) || h->blob != qul_layout_bytes(d->layout) || !h->blob)
        return QUL_LAYOUT;
    if (h->scratch > d->scratch_bytes || qul_layout_scratch(d->layout) > d->scratch_bytes)
        return QUL_LAYOUT;
    if (h->blob > d->map->slot_pages * d->flash->page)
        return QUL_LAYOUT;
    if (h->sequence <= newest || (!h->kind && (!s->sequence || h->base_sequence != s->sequence)))
        return QUL_SEQUENCE;
    return 0;
}

/* V4 */
static int payload(const uint8_t *u, uint32_t n)
{
    uint8_t digest[32];

    qul_sha256(u + QUL_HEADER, n - QUL_HEADER, digest);
    return qul_equal(digest, u + HEAD_PAYLOAD, 32) ? 0 : QUL_PAYLOAD;
}

int qul_check(const qul_device_t *d, const qul_state_t *s, const uint8_t *update, uint32_t n, qul_header_t *h)
{
    int rc = sizes(d, update, n, h);

    if (!rc)
        rc = signature(d, update);
    if (!rc)
        rc = admission(d, s, h);
    if (!rc)
        rc = payload(update, n);
    return rc ? rc : d->scheme->admit(d, s, h); /* V5 */
}

/* The new blob, page by page: a delta over `old`, or the body itself. */
int qul_decode(const qul_device_t *d, const qul_header_t *h, const uint8_t *old, uint32_t done, qul_page_fn emit,
               void *ctx)
{
    const uint8_t *body = h->bytes + QUL_HEADER;
    qul_sink_t sink;
    uint32_t at, i, n;
    int rc = 0;

    if (!h->kind) {
        sink.page = d->page;
        sink.page_bytes = d->flash->page;
        sink.done = done;
        sink.emit = emit;
        sink.ctx = ctx;
        return qul_delta_apply(d->layout, old, body, h->body, &sink, d->scratch);
    }
    for (at = 0; at < h->body && !rc; at += n) {
        n = h->body - at < d->flash->page ? h->body - at : d->flash->page;
        for (i = 0; i < n; i++)
            d->page[i] = body[at + i];
        rc = emit(ctx, at, d->page, n);
    }
    return rc;
}

static void fill(int8_t *x, uint32_t n, uint32_t seed, int8_t zero)
{
    uint32_t i, v = seed;

    for (i = 0; i < n; i++) {
        if (seed >= 16) {
            v ^= v << 13;
            v ^= v >> 17;
            v ^= v << 5;
            x[i] = (int8_t)(uint8_t)(v >> 24);
        } else {
            x[i] = (int8_t)(seed == 2 ? zero : (seed == 1 || (seed == 3 && (i & 1))) ? 127 : -128);
        }
    }
}

/* V7: binds `blob` and runs the self-test block, all of it. */
int qul_self_test(const qul_device_t *d, const uint8_t *blob, const uint8_t *block, uint32_t n, uint32_t *passed)
{
    const qul_model_t *m = d->model;
    const uint32_t *sizes_ = d->layout->sizes;
    uint32_t count, i;
    int8_t zero;

    *passed = 0;
    if (n < 8)
        return QUL_SELFTEST;
    count = block[0] | (uint32_t)block[1] << 8;
    if (!count || count > QUL_VECTORS_MAX || (block[2] | (uint32_t)block[3] << 8) != m->outputs ||
        qul_get32(block + 4) != m->inputs || n != 8 + count * (4 + m->outputs) || m->zero >= sizes_[3])
        return QUL_SELFTEST;
    if (m->bind(blob))
        return QUL_SELFTEST;
    zero = (int8_t)blob[qul_layout_bytes(d->layout) - sizes_[3] + m->zero];
    for (i = 0, block += 8; i < count; i++, block += 4 + m->outputs) {
        uint32_t seed = qul_get32(block);
        if (seed >= 4 && seed < 16)
            return QUL_SELFTEST;
        fill(m->input(), m->inputs, seed, zero);
        m->run();
        if (qul_equal((const uint8_t *)m->output(), block + 4, m->outputs))
            ++*passed;
    }
    return *passed == count ? 0 : QUL_SELFTEST;
}

static void empty(qul_state_t *s)
{
    uint32_t i;

    s->ready = s->slot = s->meta = s->sequence = s->counter = s->erased = 0;
    s->blank = 2;
    for (i = 0; i < 32; i++)
        s->digest[i] = 0;
}

int qul_boot(const qul_device_t *d, qul_state_t *s)
{
    int rc;

    empty(s);
    rc = d->scheme->boot(d, s);
    if (s->ready && d->model->bind(qul_read(d, d->map->slot[s->slot]))) {
        s->ready = 0;
        rc = rc ? rc : QUL_RECOVERY;
    }
    return rc;
}

static void write_receipt(const qul_device_t *d, const qul_state_t *s, const qul_header_t *h, int rc, uint32_t passed,
                          const uint8_t *old, int known, uint8_t *r)
{
    uint32_t i;

    for (i = 0; i < QUL_RECEIPT; i++)
        r[i] = 0;
    r[0] = 'Q';
    r[1] = 'U';
    r[2] = 'R';
    r[3] = '1';
    r[4] = 1;
    r[5] = (uint8_t)rc;
    r[6] = (uint8_t)passed;
    r[7] = (uint8_t)s->blank;
    qul_put32(r + 8, h->sequence);
    qul_put32(r + 12, s->counter);
    qul_put32(r + 16, s->erased);
    for (i = 0; i < 16; i++) {
        r[20 + i] = d->device_class[i];
        r[36 + i] = old[i];
        r[52 + i] = known ? h->bytes[HEAD_TARGET + i] : 0;
    }
    if (d->mac)
        d->mac(d->ctx, r, 68, r + 68);
}

int qul_update(const qul_device_t *d, qul_state_t *s, const uint8_t *update, uint32_t n, uint8_t *receipt)
{
    qul_header_t h;
    uint8_t old[16];
    uint32_t i, passed = 0;
    int rc;

    for (i = 0; i < 16; i++)
        old[i] = s->digest[i];
    s->erased = 0;
    s->blank = 2;
    rc = qul_check(d, s, update, n, &h);
    if (!rc)
        rc = d->scheme->install(d, s, &h, &passed);
    if (receipt)
        write_receipt(d, s, &h, rc, passed, old, h.sequence != 0, receipt);
    return rc;
}

int qul_provision(const qul_device_t *d, qul_state_t *s, const uint8_t *blob, uint32_t sequence)
{
    uint32_t n = qul_layout_bytes(d->layout), size = d->flash->page;
    uint8_t digest[32];

    if (!n || !sequence || n > d->map->slot_pages * size)
        return QUL_LAYOUT;
    if (!qul_is_blank(d, d->map->slot[0], d->map->slot_pages * size) || !qul_is_blank(d, d->map->meta[0], size) ||
        !qul_is_blank(d, d->map->meta[1], size) || qul_counter_read(d))
        return QUL_FLASH;
    qul_sha256(blob, n, digest);
    if (qul_write_page(d, d->map->slot[0], blob, n) || qul_meta_write(d, 0, sequence, digest) ||
        qul_meta_confirm(d, 0))
        return QUL_FLASH;
    return qul_boot(d, s);
}
