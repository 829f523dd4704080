/* One slot, rewritten page by page under a journal. A cut at any moment leaves either a page as it was, or its new
 * content in the data page and an entry that says so; the same update, sent again, then goes on.
 *
 * Log: header {"QUJ1", sequence, payload digest, zero, CRC-32} of 48 bytes in whole cells, then one cell each for
 * READY(page, CRC-32 of its new bytes) and DONE(page). While any of log or data page is not blank, a start believes the
 * slot only if its digest is that of a confirmed record. */
#include "qul_update.h"

#define SPARE 8u /* cells that power cuts may spoil */

static const uint8_t READY[4] = {'R', 'E', 'D', 'Y'}, DONE[4] = {'D', 'O', 'N', 'E'};

static uint32_t head_cells(const qul_device_t *d)
{
    uint32_t cell = qul_cell(d);

    return (48 + cell - 1) / cell;
}

/* Cells that the log must hold. */
uint32_t qul_log_cells(const qul_device_t *d)
{
    return head_cells(d) + 2 * d->map->slot_pages + SPARE;
}

static uint32_t log_cells(const qul_device_t *d)
{
    return d->map->log_pages * d->flash->page / qul_cell(d);
}

static int journal_blank(const qul_device_t *d)
{
    return qul_is_blank(d, d->map->log, d->map->log_pages * d->flash->page) &&
           qul_is_blank(d, d->map->data, d->flash->page);
}

static int journal_erase(const qul_device_t *d, qul_state_t *s)
{
    return qul_erase(d, s, d->map->data, 1) || qul_erase(d, s, d->map->log, d->map->log_pages) ? QUL_FLASH : 0;
}

static void header(const qul_header_t *h, uint8_t *r)
{
    uint32_t i;

    qul_put32(r, 0x314a5551u);
    qul_put32(r + 4, h->sequence);
    for (i = 0; i < 32; i++)
        r[8 + i] = h->bytes[208 + i];
    qul_put32(r + 40, 0);
    qul_put32(r + 44, qul_crc32(r, 44));
}

/* Is the journal that of this very update? */
static int resumes(const qul_device_t *d, const qul_header_t *h)
{
    uint8_t r[48];

    header(h, r);
    return qul_equal(qul_read(d, d->map->log), r, 48);
}

static void retire_other(const qul_device_t *d, qul_state_t *s, uint32_t which, int *rc)
{
    if (!*rc && !qul_is_blank(d, d->map->meta[which], d->flash->page))
        *rc = qul_meta_retire(d, which) || qul_erase(d, s, d->map->meta[which], 1) ? QUL_FLASH : 0;
}

static void take(qul_state_t *s, uint32_t which, const qul_meta_t *m)
{
    uint32_t i;

    s->slot = 0;
    s->meta = which;
    s->sequence = m->sequence;
    for (i = 0; i < 32; i++)
        s->digest[i] = m->digest[i];
}

/* The record of the highest sequence counts; s->ready stays 0 where a journal shows that the slot is not its blob. */
static int boot(const qul_device_t *d, qul_state_t *s)
{
    qul_meta_t m[2];
    uint32_t i, fine[2];
    int journal = !journal_blank(d), rc = 0;

    s->counter = qul_counter_read(d);
    for (i = 0; i < 2; i++) {
        qul_meta_read(d, i, m + i);
        fine[i] = m[i].confirmed && m[i].sequence >= s->counter;
    }
    i = fine[1] && (!fine[0] || m[1].sequence > m[0].sequence);
    if (!fine[i])
        return QUL_RECOVERY;
    take(s, i, m + i);
    if ((journal || d->careful) && !qul_blob_is(d, 0, s->digest))
        return QUL_RECOVERY;
    s->ready = 1;
    rc = qul_counter_raise(d, s, s->sequence);
    retire_other(d, s, !i, &rc);
    if (!rc && journal)
        rc = journal_erase(d, s);
    return rc;
}

static int admit(const qul_device_t *d, const qul_state_t *s, const qul_header_t *h)
{
    if (!(h->flags & 1) || log_cells(d) < qul_log_cells(d))
        return QUL_LAYOUT;
    if (h->kind)
        return 0;
    if (!s->ready) /* half an update: only the same one goes on, and the base was compared when it began */
        return resumes(d, h) && qul_equal(s->digest, h->bytes + 144, 32) ? 0 : QUL_BASE;
    return qul_blob_is(d, 0, h->bytes + 144) ? 0 : QUL_BASE;
}

typedef struct {
    const qul_device_t *d;
    qul_state_t *s;
    uint32_t next, done; /* next free cell; bytes of the slot that are new */
} work;

static int entry(work *w, const uint8_t kind[4], uint32_t page, uint32_t crc)
{
    uint8_t e[16];
    uint32_t i;

    if (w->next >= log_cells(w->d))
        return QUL_FLASH;
    for (i = 0; i < 4; i++)
        e[i] = kind[i];
    qul_put32(e + 4, page);
    qul_put32(e + 8, crc);
    qul_put32(e + 12, qul_crc32(e, 12));
    return qul_write_cell(w->d, w->d->map->log + w->next++ * qul_cell(w->d), e);
}

static int move(work *w, uint32_t page, const uint8_t *bytes, uint32_t n)
{
    const qul_device_t *d = w->d;
    uint32_t address = d->map->slot[0] + page * d->flash->page;

    w->s->ready = 0;
    if (qul_erase(d, w->s, address, 1) || qul_write_page(d, address, bytes, n) || entry(w, DONE, page, 0))
        return QUL_FLASH;
    return qul_erase(d, w->s, d->map->data, 1);
}

static int emit(void *ctx, uint32_t offset, const uint8_t *page, uint32_t n)
{
    work *w = ctx;
    const qul_device_t *d = w->d;

    if (offset < w->done || qul_equal(qul_read(d, d->map->slot[0] + offset), page, n))
        return 0;
    if (qul_erase(d, w->s, d->map->data, 1) || qul_write_page(d, d->map->data, page, n))
        return QUL_FLASH;
    offset /= d->flash->page;
    if (entry(w, READY, offset, qul_crc32(page, n)))
        return QUL_FLASH;
    return move(w, offset, page, n);
}

/* Where the journal stands; finishes the page that was READY but not DONE. */
static int resume(work *w)
{
    const qul_device_t *d = w->d;
    const uint8_t *log = qul_read(d, d->map->log), *e;
    uint32_t cell = qul_cell(d), size = d->flash->page, i, page = 0, crc = 0, ready = 0, n, total;

    w->next = head_cells(d);
    for (i = w->next; i < log_cells(d); i++) {
        e = log + i * cell;
        if (!qul_is_blank(d, d->map->log + i * cell, cell))
            w->next = i + 1;
        if (qul_get32(e + 12) != qul_crc32(e, 12) || qul_get32(e + 4) >= d->map->slot_pages)
            continue;
        if (qul_equal(e, READY, 4)) {
            page = qul_get32(e + 4);
            crc = qul_get32(e + 8);
            ready = 1;
        } else if (qul_equal(e, DONE, 4)) {
            ready = 0;
            w->done = (qul_get32(e + 4) + 1) * size;
        }
    }
    if (!ready)
        return 0;
    total = qul_layout_bytes(d->layout);
    n = total - page * size < size ? total - page * size : size;
    if (page * size >= total || qul_crc32(qul_read(d, d->map->data), n) != crc)
        return 0;
    for (i = 0; i < n; i++)
        d->page[i] = qul_read(d, d->map->data)[i];
    w->done = (page + 1) * size;
    return move(w, page, d->page, n);
}

static int hash(void *ctx, uint32_t offset, const uint8_t *page, uint32_t n)
{
    (void)offset;
    qul_sha256_add(ctx, page, n);
    return 0;
}

/* Before the first page is touched: is the result the announced one? There is no way back later. */
static int rehearse(const qul_device_t *d, const qul_header_t *h, const uint8_t *target)
{
    qul_sha256_t sha;
    uint8_t digest[32];
    int rc;

    qul_sha256_start(&sha);
    rc = qul_decode(d, h, qul_read(d, d->map->slot[0]), 0, hash, &sha);
    qul_sha256_end(&sha, digest);
    return rc ? rc : qul_equal(digest, target, 32) ? 0 : QUL_TARGET;
}

static int begin(work *w, const qul_header_t *h, const uint8_t *target)
{
    const qul_device_t *d = w->d;
    uint8_t r[48];
    int rc = rehearse(d, h, target);

    if (!rc && !w->s->ready) { /* over half an update: its base record must not come back with the journal gone */
        retire_other(d, w->s, 0, &rc);
        retire_other(d, w->s, 1, &rc);
    }
    if (!rc)
        rc = journal_erase(d, w->s);
    header(h, r);
    w->next = head_cells(d);
    return rc ? rc : qul_write_page(d, d->map->log, r, 48);
}

static int install(const qul_device_t *d, qul_state_t *s, const qul_header_t *h, uint32_t *passed)
{
    const uint8_t *target = h->bytes + 176;
    uint32_t spare = !s->meta;
    qul_meta_t m;
    work w;
    int rc;

    w.d = d;
    w.s = s;
    w.done = 0;
    if (!s->ready && resumes(d, h))
        rc = resume(&w);
    else
        rc = begin(&w, h, target);
    if (!rc)
        rc = qul_decode(d, h, qul_read(d, d->map->slot[0]), w.done, emit, &w);
    if (!rc && !qul_blob_is(d, 0, target)) {
        s->ready = 0;
        rc = QUL_TARGET;
    }
    if (!rc)
        rc = qul_self_test(d, qul_read(d, d->map->slot[0]), h->bytes + QUL_HEADER + h->body, h->selftest, passed);
    if (rc == QUL_SELFTEST)
        s->ready = 0;
    if (!rc)
        rc = qul_erase(d, s, d->map->meta[spare], 1);
    if (!rc)
        rc = qul_meta_write(d, spare, h->sequence, target);
    if (!rc)
        rc = qul_meta_confirm(d, spare);
    if (rc)
        return rc;
    qul_meta_read(d, spare, &m);
    take(s, spare, &m);
    s->ready = 1;
    rc = qul_counter_raise(d, s, s->sequence);
    retire_other(d, s, !spare, &rc);
    if (!rc)
        rc = journal_erase(d, s);
    if (!rc)
        s->blank = 0;
    return rc;
}

const qul_scheme_t qul_in_place = {boot, admit, install};
