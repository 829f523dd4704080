/* What lies in flash, and two slots: one runs, the other takes the update; the commit point is one flag.
 *
 * Meta page: record {"QUS1", sequence, bytes, digest, CRC-32}, then one cell each for VALID, CONFIRMED, RETIRED.
 * Counter: two pages of cells {sequence, its complement, CRC-32, "QUC1"}; the highest right one counts.
 * A cell is 16 bytes or one program unit, whichever is more. A torn cell is neither blank nor right, hence not set. */
#include "qul_update.h"

#define RECORD 48u
#define VALID 0u
#define CONFIRMED 1u
#define RETIRED 2u

static const uint8_t FLAGS[3][16] = {"QUL VALID      ", "QUL CONFIRMED  ", "QUL RETIRED    "};

uint32_t qul_get32(const uint8_t *p)
{
    return p[0] | ((uint32_t)p[1] << 8) | ((uint32_t)p[2] << 16) | ((uint32_t)p[3] << 24);
}

void qul_put32(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
    p[2] = (uint8_t)(v >> 16);
    p[3] = (uint8_t)(v >> 24);
}

/* CRC-32 of IEEE 802.3, four bits a step. */
uint32_t qul_crc32(const uint8_t *p, uint32_t n)
{
    static const uint32_t step[16] = {0x00000000u, 0x1db71064u, 0x3b6e20c8u, 0x26d930acu, 0x76dc4190u, 0x6b6b51f4u,
                                      0x4db26158u, 0x5005713cu, 0xedb88320u, 0xf00f9344u, 0xd6d6a3e8u, 0xcb61b38cu,
                                      0x9b64c2b0u, 0x86d3d2d4u, 0xa00ae278u, 0xbdbdf21cu};
    uint32_t c = 0xffffffffu;

    while (n--) {
        c ^= *p++;
        c = (c >> 4) ^ step[c & 15];
        c = (c >> 4) ^ step[c & 15];
    }
    return ~c;
}

uint32_t qul_cell(const qul_device_t *d)
{
    return d->flash->unit > 16 ? d->flash->unit : 16;
}

static uint32_t record_bytes(const qul_device_t *d)
{
    uint32_t cell = qul_cell(d);

    return (RECORD + cell - 1) & ~(cell - 1);
}

const uint8_t *qul_read(const qul_device_t *d, uint32_t address)
{
    return d->flash->read(d->flash->ctx, address);
}

int qul_is_blank(const qul_device_t *d, uint32_t address, uint32_t n)
{
    const uint8_t *p = qul_read(d, address);
    uint32_t all = 0xff;

    while (n--)
        all &= *p++;
    return all == 0xff;
}

/* Pages that are blank already are left alone. Each is read back. */
int qul_erase(const qul_device_t *d, qul_state_t *s, uint32_t address, uint32_t pages)
{
    uint32_t size = d->flash->page;

    for (; pages; pages--, address += size) {
        if (qul_is_blank(d, address, size))
            continue;
        if (d->flash->erase(d->flash->ctx, address) || !qul_is_blank(d, address, size))
            return QUL_FLASH;
        s->erased++;
    }
    return 0;
}

/* The first n bytes of `page`; a last unit that is not full ends in 0xFF. */
int qul_write_page(const qul_device_t *d, uint32_t address, const uint8_t *page, uint32_t n)
{
    uint32_t unit = d->flash->unit, whole = n & ~(unit - 1), i;
    uint8_t last[64];

    if (whole && d->flash->program(d->flash->ctx, address, page, whole))
        return QUL_FLASH;
    if (n != whole) {
        for (i = 0; i < unit; i++)
            last[i] = whole + i < n ? page[whole + i] : 0xff;
        if (d->flash->program(d->flash->ctx, address + whole, last, unit))
            return QUL_FLASH;
    }
    return qul_equal(qul_read(d, address), page, n) ? 0 : QUL_FLASH;
}

int qul_write_cell(const qul_device_t *d, uint32_t address, const uint8_t data[16])
{
    uint32_t cell = qul_cell(d), i;
    uint8_t bytes[64];

    for (i = 0; i < cell; i++)
        bytes[i] = i < 16 ? data[i] : 0;
    return qul_write_page(d, address, bytes, cell);
}

static uint32_t flag_address(const qul_device_t *d, uint32_t which, uint32_t flag)
{
    return d->map->meta[which] + record_bytes(d) + flag * qul_cell(d);
}

static int flag_set(const qul_device_t *d, uint32_t which, uint32_t flag)
{
    return qul_equal(qul_read(d, flag_address(d, which, flag)), FLAGS[flag], 16);
}

void qul_meta_read(const qul_device_t *d, uint32_t which, qul_meta_t *m)
{
    const uint8_t *r = qul_read(d, d->map->meta[which]);
    uint32_t i, right;

    right = r[0] == 'Q' && r[1] == 'U' && r[2] == 'S' && r[3] == '1' && qul_get32(r + 44) == qul_crc32(r, 44) &&
            qul_get32(r + 8) == qul_layout_bytes(d->layout);
    m->valid = (uint32_t)flag_set(d, which, VALID);
    m->confirmed = right && m->valid && flag_set(d, which, CONFIRMED) && !flag_set(d, which, RETIRED);
    m->sequence = qul_get32(r + 4);
    for (i = 0; i < 32; i++)
        m->digest[i] = r[12 + i];
}

/* Into a blank meta page: the record and VALID. */
int qul_meta_write(const qul_device_t *d, uint32_t which, uint32_t sequence, const uint8_t digest[32])
{
    static const uint8_t magic[4] = {'Q', 'U', 'S', '1'};
    uint8_t r[RECORD];
    uint32_t i;

    for (i = 0; i < 4; i++)
        r[i] = magic[i];
    qul_put32(r + 4, sequence);
    qul_put32(r + 8, qul_layout_bytes(d->layout));
    for (i = 0; i < 32; i++)
        r[12 + i] = digest[i];
    qul_put32(r + 44, qul_crc32(r, 44));
    if (qul_write_page(d, d->map->meta[which], r, RECORD))
        return QUL_FLASH;
    return qul_write_cell(d, flag_address(d, which, VALID), FLAGS[VALID]);
}

int qul_meta_confirm(const qul_device_t *d, uint32_t which)
{
    return qul_write_cell(d, flag_address(d, which, CONFIRMED), FLAGS[CONFIRMED]);
}

/* A flag that is torn cannot be written again, and need not: its page is erased next. */
int qul_meta_retire(const qul_device_t *d, uint32_t which)
{
    uint32_t address = flag_address(d, which, RETIRED);

    if (!qul_is_blank(d, address, qul_cell(d)))
        return 0;
    return qul_write_cell(d, address, FLAGS[RETIRED]);
}

static int counter_right(const uint8_t *c)
{
    return qul_get32(c + 4) == ~qul_get32(c) && qul_get32(c + 8) == qul_crc32(c, 8) &&
           qul_get32(c + 12) == 0x31435551u;
}

static uint32_t counter_highest(const qul_device_t *d, uint32_t page)
{
    const uint8_t *p = qul_read(d, d->map->counter[page]);
    uint32_t at, best = 0;

    for (at = 0; at + qul_cell(d) <= d->flash->page; at += qul_cell(d))
        if (counter_right(p + at) && qul_get32(p + at) > best)
            best = qul_get32(p + at);
    return best;
}

uint32_t qul_counter_read(const qul_device_t *d)
{
    uint32_t a = counter_highest(d, 0), b = counter_highest(d, 1);

    return a > b ? a : b;
}

/* Appended behind the page's last used cell; when the page with the highest is full, the other one starts anew. */
int qul_counter_raise(const qul_device_t *d, qul_state_t *s, uint32_t sequence)
{
    uint32_t a = counter_highest(d, 0), b = counter_highest(d, 1), cell = qul_cell(d), at;
    uint32_t page = b > a, base = d->map->counter[page];
    uint8_t c[16];

    s->counter = a > b ? a : b;
    if (s->counter >= sequence)
        return 0;
    at = d->flash->page / cell * cell;
    while (at && qul_is_blank(d, base + at - cell, cell))
        at -= cell;
    if (at + cell > d->flash->page) {
        base = d->map->counter[!page];
        if (qul_erase(d, s, base, 1))
            return QUL_FLASH;
        at = 0;
    }
    qul_put32(c, sequence);
    qul_put32(c + 4, ~sequence);
    qul_put32(c + 8, qul_crc32(c, 8));
    qul_put32(c + 12, 0x31435551u);
    if (qul_write_cell(d, base + at, c))
        return QUL_FLASH;
    s->counter = sequence;
    return 0;
}

int qul_blob_is(const qul_device_t *d, uint32_t slot, const uint8_t digest[32])
{
    uint8_t found[32];

    qul_sha256(qul_read(d, d->map->slot[slot]), qul_layout_bytes(d->layout), found);
    return qul_equal(found, digest, 32);
}

static int slot_blank(const qul_device_t *d, uint32_t slot)
{
    return qul_is_blank(d, d->map->meta[slot], d->flash->page) &&
           qul_is_blank(d, d->map->slot[slot], d->map->slot_pages * d->flash->page);
}

/* U9: mark, erase the blob, read back, erase the record; every start does it again until it is done. */
static int retire(const qul_device_t *d, qul_state_t *s, uint32_t slot)
{
    s->blank = 1;
    if (!qul_is_blank(d, d->map->meta[slot], d->flash->page) && qul_meta_retire(d, slot))
        return QUL_FLASH;
    if (qul_erase(d, s, d->map->slot[slot], d->map->slot_pages))
        return QUL_FLASH;
    if (!qul_is_blank(d, d->map->slot[slot], d->map->slot_pages * d->flash->page))
        return QUL_FLASH;
    s->blank = 0;
    return qul_erase(d, s, d->map->meta[slot], 1);
}

/* The update's slot, before it is confirmed: its record goes first, so that no half slot has one. */
static int clear(const qul_device_t *d, qul_state_t *s, uint32_t slot)
{
    if (qul_erase(d, s, d->map->meta[slot], 1))
        return QUL_FLASH;
    return qul_erase(d, s, d->map->slot[slot], d->map->slot_pages);
}

static void run_slot(qul_state_t *s, uint32_t slot, const qul_meta_t *m)
{
    uint32_t i;

    s->ready = 1;
    s->slot = slot;
    s->meta = slot;
    s->sequence = m->sequence;
    for (i = 0; i < 32; i++)
        s->digest[i] = m->digest[i];
}

static int boot(const qul_device_t *d, qul_state_t *s)
{
    qul_meta_t m[2];
    uint32_t i, fine[2], blank[2];

    s->counter = qul_counter_read(d);
    for (i = 0; i < 2; i++) {
        blank[i] = (uint32_t)slot_blank(d, i);
        qul_meta_read(d, i, m + i);
    }
    for (i = 0; i < 2; i++) {
        fine[i] = m[i].confirmed && m[i].sequence >= s->counter;
        if (fine[i] && (d->careful || !blank[!i]))
            fine[i] = (uint32_t)qul_blob_is(d, i, m[i].digest);
    }
    i = fine[1] && (!fine[0] || m[1].sequence > m[0].sequence);
    if (!fine[i]) {
        for (i = 0; i < 2; i++)
            if (m[i].valid && !m[i].confirmed && clear(d, s, i))
                return QUL_FLASH;
        return QUL_RECOVERY;
    }
    run_slot(s, i, m + i);
    if (qul_counter_raise(d, s, s->sequence))
        return QUL_FLASH;
    if (blank[!i])
        return 0;
    return retire(d, s, !i);
}

static int admit(const qul_device_t *d, const qul_state_t *s, const qul_header_t *h)
{
    if (h->kind)
        return 0;
    return qul_blob_is(d, s->slot, h->bytes + 144) ? 0 : QUL_BASE;
}

typedef struct {
    const qul_device_t *d;
    uint32_t address;
} place;

static int emit(void *ctx, uint32_t offset, const uint8_t *page, uint32_t n)
{
    const place *p = ctx;

    return qul_write_page(p->d, p->address + offset, page, n);
}

/* U2 to U9. */
static int install(const qul_device_t *d, qul_state_t *s, const qul_header_t *h, uint32_t *passed)
{
    uint32_t slot = s->ready ? !s->slot : 0;
    const uint8_t *target = h->bytes + 176, *old = qul_read(d, d->map->slot[!slot]);
    qul_meta_t m;
    place p;
    int rc;

    p.d = d;
    p.address = d->map->slot[slot];
    rc = clear(d, s, slot);
    if (!rc)
        rc = qul_decode(d, h, old, 0, emit, &p);
    if (!rc && !qul_blob_is(d, slot, target))
        rc = QUL_TARGET;
    if (!rc)
        rc = qul_meta_write(d, slot, h->sequence, target);
    if (!rc)
        rc = qul_self_test(d, qul_read(d, p.address), h->bytes + QUL_HEADER + h->body, h->selftest, passed);
    if (!rc)
        rc = qul_meta_confirm(d, slot);
    if (rc) {
        if (clear(d, s, slot))
            rc = QUL_FLASH;
        if (s->ready && d->model->bind(qul_read(d, d->map->slot[s->slot])))
            s->ready = 0;
        return rc;
    }
    qul_meta_read(d, slot, &m);
    run_slot(s, slot, &m);
    rc = qul_counter_raise(d, s, s->sequence);
    if (rc)
        return rc;
    return retire(d, s, !slot);
}

const qul_scheme_t qul_two_slots = {boot, admit, install};
