/* The delta applier. One pass over the body, one page of memory, 4 bytes for each bias that a weight can move.
 * Every length is checked before it is used; work is bounded by the lengths of body and blob. */
#include "qul_delta.h"

#define BAD 14
#define QUOTIENT_MAX 1024u

typedef struct {
    const qul_layout_t *layout;
    const qul_sink_t *sink;
    const uint8_t *old;
    uint32_t *shift;            /* what changed weights do to the biases, one word a slot */
    uint32_t total;             /* bytes of the blob */
    uint32_t base;              /* first byte of the page in memory */
    int rc;
    uint32_t start[4];          /* first byte of each section */
    const qul_fold_t *wf, *bf;  /* folds of the weight and of the bias at hand; end = past the last */
    const qul_fold_t *end;
    uint32_t ws, bs, bc;        /* their first slots; channel reached within bf */
    const uint8_t *p, *stop;    /* the rest of the body */
    uint32_t acc, bits;         /* up to 32 bits of the stream, left-aligned, zeros behind */
} work;

uint32_t qul_layout_bytes(const qul_layout_t *l)
{
    const uint32_t *n = l->sizes;
    uint32_t i, weight = 0, bias = 0;

    if ((n[0] & 3) || n[0] > 0x10000000u || n[1] > 0x04000000u || n[2] > 0x04000000u || n[3] > 0x10000000u)
        return 0;
    for (i = 0; i < l->n_folds; i++) {
        const qul_fold_t *f = l->folds + i;
        if (f->weight < weight || f->count > n[0] || f->weight > n[0] - f->count)
            return 0;
        if (f->bias < bias || f->channels > n[1] || f->bias > n[1] - f->channels)
            return 0;
        if (!f->channels || f->zero >= n[3])
            return 0;
        if (f->inner && (f->count ? f->count - 1 : 0) / f->inner >= f->channels)
            return 0;
        weight = f->weight + f->count;
        bias = f->bias + f->channels;
    }
    return n[0] + 4 * n[1] + 4 * n[2] + n[3];
}

uint32_t qul_layout_scratch(const qul_layout_t *l)
{
    uint32_t i, n = 0;

    for (i = 0; i < l->n_folds; i++)
        n += l->folds[i].channels;
    return 4 * n;
}

static uint32_t get32(const uint8_t *p)
{
    return p[0] | ((uint32_t)p[1] << 8) | ((uint32_t)p[2] << 16) | ((uint32_t)p[3] << 24);
}

static void put32(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
    p[2] = (uint8_t)(v >> 16);
    p[3] = (uint8_t)(v >> 24);
}

static uint32_t page_length(const work *w)
{
    uint32_t left = w->total - w->base;

    return left < w->sink->page_bytes ? left : w->sink->page_bytes;
}

static void load(work *w)
{
    const uint8_t *from = w->old + w->base;
    uint8_t *to = w->sink->page;
    uint32_t n = page_length(w);

#if defined(__GNUC__) /* a word load and a word store, whatever the alignment */
    for (; n >= 4; n -= 4, from += 4, to += 4)
        __builtin_memcpy(to, from, 4);
#endif
    while (n--)
        *to++ = *from++;
}

/* The byte at `offset` in the page in memory; pages before it are emitted. 0 if that failed. Offsets never fall. */
static uint8_t *at(work *w, uint32_t offset)
{
    while (offset - w->base >= w->sink->page_bytes) {
        w->rc = w->sink->emit(w->sink->ctx, w->base, w->sink->page, page_length(w));
        if (w->rc)
            return 0;
        w->base += w->sink->page_bytes;
        load(w);
    }
    return w->sink->page + (offset - w->base);
}

static int byte(work *w, uint32_t *v)
{
    if (w->p == w->stop)
        return 0;
    *v = *w->p++;
    return 1;
}

static int varint(work *w, uint32_t *v)
{
    uint32_t shift = 0, b;

    *v = 0;
    do {
        if (!byte(w, &b) || (shift == 28 && b > 15))
            return 0;
        *v |= (b & 127) << shift;
        shift += 7;
    } while (b & 128);
    return b || shift == 7; /* the last byte of a longer one is not zero */
}

/* At least 25 bits, or all that are left. */
static void refill(work *w)
{
    while (w->bits <= 24 && w->p != w->stop) {
        w->acc |= (uint32_t)*w->p++ << (24 - w->bits);
        w->bits += 8;
    }
}

/* n <= 16 bits */
static int take(work *w, uint32_t n, uint32_t *v)
{
    refill(w);
    if (n > w->bits)
        return 0;
    *v = n ? w->acc >> (32 - n) : 0;
    w->acc <<= n;
    w->bits -= n;
    return 1;
}

static uint32_t leading_ones(uint32_t v)
{
#if defined(__GNUC__)
    return ~v ? (uint32_t)__builtin_clz(~v) : 32;
#else
    uint32_t n = 0;

    for (; v & 0x80000000u; v <<= 1)
        n++;
    return n;
#endif
}

/* A Rice code with a quotient up to `most` and a value below 2^31; n <= 31. */
static int rice(work *w, uint32_t n, uint32_t most, uint32_t *v)
{
    uint32_t q = 0, ones, low, m;

    for (;;) {
        refill(w);
        ones = leading_ones(w->acc);
        q += ones;
        if (q > most || !w->bits)
            return 0;
        if (ones < w->bits)
            break;
        w->acc = 0;
        w->bits = 0;
    }
    w->acc = w->acc << ones << 1;
    w->bits -= ones + 1;
    if (q > 0x7fffffffu >> n)
        return 0;
    for (; n; n -= m) {
        m = n > 16 ? 16 : n;
        if (!take(w, m, &low))
            return 0;
        q = (q << m) | low;
    }
    *v = q;
    return 1;
}

/* The rest of the last byte is zero; whole bytes read ahead go back. */
static int end_bits(work *w)
{
    uint32_t pad = w->bits & 7;
    int ok = !pad || !(w->acc >> (32 - pad));

    w->p -= w->bits >> 3;
    w->acc = 0;
    w->bits = 0;
    return ok;
}

/* Move the biases before element `until` of B by what their weights changed. */
static int move_biases(work *w, uint32_t until)
{
    for (; w->bf != w->end; w->bs += w->bf->channels, w->bf++, w->bc = 0) {
        for (; w->bc < w->bf->channels; w->bc++) {
            uint32_t i = w->bf->bias + w->bc, by = w->shift[w->bs + w->bc];
            uint8_t *b;
            if (i >= until)
                return 1;
            if (!by)
                continue;
            b = at(w, w->start[1] + 4 * i);
            if (!b)
                return 0;
            put32(b, get32(b) + by);
        }
    }
    return 1;
}

/* Element `i` of `section` changes by `d` (a two's complement word). */
static int change(work *w, uint32_t section, uint32_t i, uint32_t d)
{
    uint32_t word = section == 1 || section == 2, offset = w->start[section] + (word ? 4 * i : i);
    uint8_t *b;

    if (section == 1 && !move_biases(w, i + 1))
        return 0;
    b = at(w, offset);
    if (!b)
        return 0;
    if (word) {
        put32(b, get32(b) + d);
        return 1;
    }
    if ((*b ^ 128u) + d > 255 && offset >= w->sink->done) {
        w->rc = BAD;
        return 0;
    }
    *b = (uint8_t)(*b + d);
    if (section == 0) {
        while (w->wf != w->end && i - w->wf->weight >= w->wf->count && i >= w->wf->weight) {
            w->ws += w->wf->channels;
            w->wf++;
        }
        if (w->wf != w->end && i >= w->wf->weight) {
            uint32_t zero = w->old[w->start[3] + w->wf->zero], k = i - w->wf->weight;
            k = w->wf->inner ? k / w->wf->inner : k % w->wf->channels;
            w->shift[w->ws + k] -= ((zero ^ 128u) - 128u) * d;
        }
    }
    return 1;
}

/* Elements start .. start + length - 1 take new values. */
static int raw(work *w, uint32_t section, uint32_t start, uint32_t length)
{
    uint32_t wide = section == 1 || section == 2 ? 4 : 1, i, j;

    if (length > (uint32_t)(w->stop - w->p) / wide)
        return 0;
    for (i = start; i < start + length; i++) {
        uint8_t *b;
        if (section == 1 && !move_biases(w, i + 1))
            return 0;
        b = at(w, w->start[section] + i * wide);
        if (!b)
            return 0;
        for (j = 0; j < wide; j++)
            b[j] = *w->p++;
    }
    return 1;
}

static int rices(work *w, uint32_t section, uint32_t start, uint32_t length, uint32_t head, uint32_t e, uint32_t j)
{
    uint32_t k = head & 15, mag = (head >> 4) & 3, count, run = 0, position = start, end = start + length;
    uint32_t gap, sign, size, most_gap = (length - 1) >> k, most_run;

    if (!varint(w, &count) || count - 1 >= length)
        return 0;
    most_run = count >> e;
    if (mag == 1 && !rice(w, e, most_run, &run))
        return 0;
    for (; count; count--, position++) {
        if (!rice(w, k, most_gap, &gap) || gap >= end - position)
            return 0;
        position += gap;
        if (!take(w, 1, &sign))
            return 0;
        size = 1;
        if (mag == 2 || (mag == 1 && !run)) {
            if (!rice(w, j, QUOTIENT_MAX, &size))
                return 0;
            size += mag == 1 ? 2 : 1;
            if (size >> 31 || (mag == 1 && !rice(w, e, most_run, &run)))
                return 0;
        } else if (mag == 1) {
            run--;
        }
        if (!change(w, section, position, sign ? 0u - size : size))
            return 0;
    }
    return end_bits(w);
}

static int record(work *w, uint32_t *section, uint32_t *end)
{
    uint32_t head, mag, e = 0, j = 0, gap, more, room;

    if (!byte(w, &head) || head >> 6 < *section)
        return 0;
    if (head >> 6 > *section)
        *end = 0;
    *section = head >> 6;
    if (*section > 1 && !move_biases(w, w->layout->sizes[1]))
        return 0;
    mag = (head >> 4) & 3;
    if ((mag == 1 || mag == 2) && (!byte(w, &e) || !byte(w, &j) || e > 15 || j > 31 || (mag == 2 && e)))
        return 0;
    room = w->layout->sizes[*section] - *end;
    if (!varint(w, &gap) || gap > room || !varint(w, &more) || more >= room - gap)
        return 0;
    gap += *end;
    *end = gap + more + 1;
    if (mag == 3)
        return !(head & 15) && raw(w, *section, gap, more + 1);
    return rices(w, *section, gap, more + 1, head, e, j);
}

int qul_delta_apply(const qul_layout_t *layout, const uint8_t *old_blob, const uint8_t *body, uint32_t n,
                    const qul_sink_t *sink, int32_t *scratch)
{
    work w;
    uint32_t records, section = 0, end = 0, i, slots = qul_layout_scratch(layout) / 4;

    w.total = qul_layout_bytes(layout);
    if (n < 16 || get32(body) != 0x31445551u || get32(body + 4) != w.total || get32(body + 12) || !w.total)
        return BAD;
    records = get32(body + 8);
    w.layout = layout;
    w.sink = sink;
    w.old = old_blob;
    w.shift = (uint32_t *)scratch;
    w.base = 0;
    w.rc = 0;
    w.start[0] = 0;
    w.start[1] = layout->sizes[0];
    w.start[2] = w.start[1] + 4 * layout->sizes[1];
    w.start[3] = w.start[2] + 4 * layout->sizes[2];
    w.wf = w.bf = layout->folds;
    w.end = layout->folds + layout->n_folds;
    w.ws = w.bs = w.bc = 0;
    w.p = body + 16;
    w.stop = body + n;
    w.acc = w.bits = 0;
    for (i = 0; i < slots; i++)
        w.shift[i] = 0;
    load(&w);
    while (records--)
        if (!record(&w, &section, &end))
            return w.rc ? w.rc : BAD;
    if (w.p != w.stop)
        return BAD;
    if (!move_biases(&w, layout->sizes[1]) || !at(&w, w.total - 1))
        return w.rc;
    return sink->emit(sink->ctx, w.base, sink->page, page_length(&w));
}
