/* Ed25519 verification (RFC 8032, 5.1.7), ours. A number modulo p = 2^255 - 19 is ten signed limbs of 26 and 25 bits in
 * turn, least significant first (the radix 2^25.5 of D. J. Bernstein, Curve25519, 2006). "Small" means that limbs are
 * at most 1.01 * 2^25 and 2^24 in size, as a product's are; sums of up to three small numbers may be multiplied.
 * Curve points are (X : Y : Z : T), x = X/Z, y = Y/Z, T = XY/Z. The two scalar multiplications share their doublings
 * (Straus), over signed windows of odd digits. */
#include "qul_crypto.h"

typedef int32_t fe[10];
typedef struct {
    fe x, y, z, t;
} point;
typedef struct {
    fe sum, diff, t2d, z2; /* Y + X, Y - X, 2 d T, 2 Z */
} cached;

#define WINDOW_KEY 4
#define WINDOW_BASE 5

/* d, 2 d, a square root of -1, and y + x, y - x, 2 d x y of 1, 3, ..., 15 times the base point; the group order. */
static const fe D = {-10913610, 13857413, -15372611, 6949391, 114729, -8787816, -6275908, -3247719, -18696448,
    -12055116};
static const fe D2 = {-21827239, -5839606, -30745221, 13898782, 229458, 15978800, -12551817, -6495438,
    29715968, 9444199};
static const fe ROOT = {-32595792, -7943725, 9377950, 3500415, 12389472, -272473, -25146209, -2005654, 326686,
    11406482};
static const fe BASE[8][3] = {
    {{25967493, -14356035, 29566456, 3660896, -12694345, 4014787, 27544626, -11754271, -6079156, 2047605},
     {-12545711, 934262, -2722910, 3049990, -727428, 9406986, 12720692, 5043384, 19500929, -15469378},
     {-8738181, 4489570, 9688441, -14785194, 10184609, -12363380, 29287919, 11864899, -24514362, -4438546}},
    {{15636291, -9688557, 24204773, -7912398, 616977, -16685262, 27787600, -14772189, 28944400, -1550024},
     {16568933, 4717097, -11556148, -1102322, 15682896, -11807043, 16354577, -11775962, 7689662, 11199574},
     {30464156, -5976125, -11779434, -15670865, 23220365, 15915852, 7512774, 10017326, -17749093, -9920357}},
    {{10861363, 11473154, 27284546, 1981175, -30064349, 12577861, 32867885, 14515107, -15438304, 10819380},
     {4708026, 6336745, 20377586, 9066809, -11272109, 6594696, -25653668, 12483688, -12668491, 5581306},
     {19563160, 16186464, -29386857, 4097519, 10237984, -4348115, 28542350, 13850243, -23678021, -15815942}},
    {{5153746, 9909285, 1723747, -2777874, 30523605, 5516873, 19480852, 5230134, -23952439, -15175766},
     {-30269007, -3463509, 7665486, 10083793, 28475525, 1649722, 20654025, 16520125, 30598449, 7715701},
     {28881845, 14381568, 9657904, 3680757, -20181635, 7843316, -31400660, 1370708, 29794553, -1409300}},
    {{-22518993, -6692182, 14201702, -8745502, -23510406, 8844726, 18474211, -1361450, -13062696, 13821877},
     {-6455177, -7839871, 3374702, -4740862, -27098617, -10571707, 31655028, -7212327, 18853322, -14220951},
     {4566830, -12963868, -28974889, -12240689, -7602672, -2830569, -8514358, -10431137, 2207753, -3209784}},
    {{-25154831, -4185821, 29681144, 7868801, -6854661, -9423865, -12437364, -663000, -31111463, -16132436},
     {25576264, -2703214, 7349804, -11814844, 16472782, 9300885, 3844789, 15725684, 171356, 6466918},
     {23103977, 13316479, 9739013, -16149481, 817875, -15038942, 8965339, -14088058, -30714912, 16193877}},
    {{-33521811, 3180713, -2394130, 14003687, -16903474, -16270840, 17238398, 4729455, -18074513, 9256800},
     {-25182317, -4174131, 32336398, 5036987, -21236817, 11360617, 22616405, 9761698, -19827198, 630305},
     {-13720693, 2639453, -24237460, -7406481, 9494427, -5774029, -6554551, -15960994, -2449256, -14291300}},
    {{-3151181, -5046075, 9282714, 6866145, -31907062, -863023, -18940575, 15033784, 25105118, -7894876},
     {-24326370, 15950226, -31801215, -14592823, -11662737, -5090925, 1573892, -2625887, 2198790, -15804619},
     {-3099351, 10324967, -2241613, 7453183, -5446979, -2735503, -13812022, -16236442, -32461234, -12290683}},
};
static const uint32_t ORDER[8] = {0x5cf5d3edu, 0x5812631au, 0xa2f79cd6u, 0x14def9deu, 0x00000000u, 0x00000000u,
    0x00000000u, 0x10000000u};

static void fe_copy(fe r, const fe a)
{
    uint32_t i;

    for (i = 0; i < 10; i++)
        r[i] = a[i];
}

static void fe_set(fe r, int32_t v)
{
    uint32_t i;

    for (i = 1; i < 10; i++)
        r[i] = 0;
    r[0] = v;
}

static void fe_add(fe r, const fe a, const fe b)
{
    uint32_t i;

    for (i = 0; i < 10; i++)
        r[i] = a[i] + b[i];
}

static void fe_sub(fe r, const fe a, const fe b)
{
    uint32_t i;

    for (i = 0; i < 10; i++)
        r[i] = a[i] - b[i];
}

/* The end of a product: the low n bits of column c, as a signed number, are limb k of r; the rest goes on into the next
 * column. Conversions and shifts of negative numbers are two's complement with every compiler that this is for. */
#define LIMB(k, n)                                                                                                     \
    do {                                                                                                               \
        int32_t low_ = (int32_t)((uint32_t)c << (32 - (n))) >> (32 - (n));                                             \
        r[k] = low_;                                                                                                   \
        c = (c - low_) >> (n);                                                                                         \
    } while (0)

/* 2^255 = 19: the carry out of limb 9 comes back to limb 0, and from there to limb 1. */
static void wrap(int32_t *r, int64_t c)
{
    c = c * 19 + r[0];
    LIMB(0, 26);
    r[1] += (int32_t)c;
}

static void fe_carry(fe r)
{
    int64_t c = 0;
    uint32_t k;

    for (k = 0; k < 10; k += 2) {
        c += r[k];
        LIMB(k, 26);
        c += r[k + 1];
        LIMB(k + 1, 25);
    }
    wrap(r, c);
}

#define X(u, v) ((int64_t)(u) * (v))

/* a and b: sums of up to three small numbers. Two odd limbs meet at half a bit too much each, hence doubled; b19 is what
 * wraps round. r is small. */
static void fe_mul(fe r, const fe a, const fe b)
{
    const int32_t a0 = a[0], a1 = a[1], a2 = a[2], a3 = a[3], a4 = a[4], a5 = a[5], a6 = a[6], a7 = a[7], a8 = a[8],
                  a9 = a[9];
    const int32_t b0 = b[0], b1 = b[1], b2 = b[2], b3 = b[3], b4 = b[4], b5 = b[5], b6 = b[6], b7 = b[7], b8 = b[8],
                  b9 = b[9];
    const int32_t d1 = 2 * a1, d3 = 2 * a3, d5 = 2 * a5, d7 = 2 * a7, d9 = 2 * a9;
    const int32_t w1 = 19 * b1, w2 = 19 * b2, w3 = 19 * b3, w4 = 19 * b4, w5 = 19 * b5, w6 = 19 * b6, w7 = 19 * b7,
                  w8 = 19 * b8, w9 = 19 * b9;
    int64_t c = 0;

    c += X(a0, b0) + X(d1, w9) + X(a2, w8) + X(d3, w7) + X(a4, w6) + X(d5, w5) + X(a6, w4) + X(d7, w3) + X(a8, w2) +
         X(d9, w1);
    LIMB(0, 26);
    c += X(a0, b1) + X(a1, b0) + X(a2, w9) + X(a3, w8) + X(a4, w7) + X(a5, w6) + X(a6, w5) + X(a7, w4) + X(a8, w3) +
         X(a9, w2);
    LIMB(1, 25);
    c += X(a0, b2) + X(d1, b1) + X(a2, b0) + X(d3, w9) + X(a4, w8) + X(d5, w7) + X(a6, w6) + X(d7, w5) + X(a8, w4) +
         X(d9, w3);
    LIMB(2, 26);
    c += X(a0, b3) + X(a1, b2) + X(a2, b1) + X(a3, b0) + X(a4, w9) + X(a5, w8) + X(a6, w7) + X(a7, w6) + X(a8, w5) +
         X(a9, w4);
    LIMB(3, 25);
    c += X(a0, b4) + X(d1, b3) + X(a2, b2) + X(d3, b1) + X(a4, b0) + X(d5, w9) + X(a6, w8) + X(d7, w7) + X(a8, w6) +
         X(d9, w5);
    LIMB(4, 26);
    c += X(a0, b5) + X(a1, b4) + X(a2, b3) + X(a3, b2) + X(a4, b1) + X(a5, b0) + X(a6, w9) + X(a7, w8) + X(a8, w7) +
         X(a9, w6);
    LIMB(5, 25);
    c += X(a0, b6) + X(d1, b5) + X(a2, b4) + X(d3, b3) + X(a4, b2) + X(d5, b1) + X(a6, b0) + X(d7, w9) + X(a8, w8) +
         X(d9, w7);
    LIMB(6, 26);
    c += X(a0, b7) + X(a1, b6) + X(a2, b5) + X(a3, b4) + X(a4, b3) + X(a5, b2) + X(a6, b1) + X(a7, b0) + X(a8, w9) +
         X(a9, w8);
    LIMB(7, 25);
    c += X(a0, b8) + X(d1, b7) + X(a2, b6) + X(d3, b5) + X(a4, b4) + X(d5, b3) + X(a6, b2) + X(d7, b1) + X(a8, b0) +
         X(d9, w9);
    LIMB(8, 26);
    c += X(a0, b9) + X(a1, b8) + X(a2, b7) + X(a3, b6) + X(a4, b5) + X(a5, b4) + X(a6, b3) + X(a7, b2) + X(a8, b1) +
         X(a9, b0);
    LIMB(9, 25);
    wrap(r, c);
}

/* fe_mul(r, a, a) with every mixed product formed once. */
static void fe_square(fe r, const fe a)
{
    const int32_t a0 = a[0], a1 = a[1], a2 = a[2], a3 = a[3], a4 = a[4], a5 = a[5], a6 = a[6], a7 = a[7], a8 = a[8],
                  a9 = a[9];
    const int32_t d0 = 2 * a0, d1 = 2 * a1, d2 = 2 * a2, d3 = 2 * a3, d4 = 2 * a4, d5 = 2 * a5, d6 = 2 * a6, d7 = 2 * a7,
                  d8 = 2 * a8, d9 = 2 * a9;
    const int32_t w5 = 19 * a5, w6 = 19 * a6, w7 = 19 * a7, w8 = 19 * a8, w9 = 19 * a9;
    int64_t c = 0;

    c += X(a0, a0) + X(d1, 2 * w9) + X(d2, w8) + X(d3, 2 * w7) + X(d4, w6) + X(d5, w5);
    LIMB(0, 26);
    c += X(d0, a1) + X(d2, w9) + X(d3, w8) + X(d4, w7) + X(d5, w6);
    LIMB(1, 25);
    c += X(d0, a2) + X(d1, a1) + X(d3, 2 * w9) + X(d4, w8) + X(d5, 2 * w7) + X(a6, w6);
    LIMB(2, 26);
    c += X(d0, a3) + X(d1, a2) + X(d4, w9) + X(d5, w8) + X(d6, w7);
    LIMB(3, 25);
    c += X(d0, a4) + X(d1, d3) + X(a2, a2) + X(d5, 2 * w9) + X(d6, w8) + X(d7, w7);
    LIMB(4, 26);
    c += X(d0, a5) + X(d1, a4) + X(d2, a3) + X(d6, w9) + X(d7, w8);
    LIMB(5, 25);
    c += X(d0, a6) + X(d1, d5) + X(d2, a4) + X(d3, a3) + X(d7, 2 * w9) + X(a8, w8);
    LIMB(6, 26);
    c += X(d0, a7) + X(d1, a6) + X(d2, a5) + X(d3, a4) + X(d8, w9);
    LIMB(7, 25);
    c += X(d0, a8) + X(d1, d7) + X(d2, a6) + X(d3, d5) + X(a4, a4) + X(d9, w9);
    LIMB(8, 26);
    c += X(d0, a9) + X(d1, a8) + X(d2, a7) + X(d3, a6) + X(d4, a5);
    LIMB(9, 25);
    wrap(r, c);
}

static void fe_squares(fe r, uint32_t n)
{
    while (n--)
        fe_square(r, r);
}

/* The 32 bytes of the one value in 0 .. p - 1; r is carried on the way. */
static void store(uint8_t *out, fe r)
{
    static const uint8_t bits[10] = {26, 25, 26, 25, 26, 25, 26, 25, 26, 25};
    int32_t q = 0;
    uint32_t i, have = 0;
    uint64_t acc = 0;

    fe_carry(r);
    fe_carry(r);
    /* r in (-p, 2p) or so: q = floor(r / p) by running (r + 19 q') / 2^255 through, after Bernstein's reference. */
    q = (19 * r[9] + ((int32_t)1 << 24)) >> 25;
    for (i = 0; i < 10; i++)
        q = (r[i] + q) >> bits[i];
    r[0] += 19 * q;
    for (i = 0; i < 9; i++) {
        int32_t c = r[i] >> bits[i];
        r[i + 1] += c;
        r[i] -= c * ((int32_t)1 << bits[i]);
    }
    r[9] &= 0x1ffffff;
    for (i = 0; i < 10; i++) {
        acc |= (uint64_t)(uint32_t)r[i] << have;
        for (have += bits[i]; have >= 8; have -= 8, acc >>= 8)
            *out++ = (uint8_t)acc;
    }
    *out = (uint8_t)acc;
}

static void load(fe r, const uint8_t *p)
{
    static const uint8_t bits[10] = {26, 25, 26, 25, 26, 25, 26, 25, 26, 25};
    uint32_t i, have = 0;
    uint64_t acc = 0;

    for (i = 0; i < 10; i++) {
        for (; have < bits[i] && have < 64 - 8; have += 8)
            acc |= (uint64_t)*p++ << have;
        r[i] = (int32_t)((uint32_t)acc & (((uint32_t)1 << bits[i]) - 1));
        acc >>= bits[i];
        have -= bits[i];
    }
}

static int fe_is_zero(const fe a)
{
    fe t;
    uint8_t bytes[32];
    uint32_t i, d = 0;

    fe_copy(t, a);
    store(bytes, t);
    for (i = 0; i < 32; i++)
        d |= bytes[i];
    return d == 0;
}

/* r = z^(2^252 - 3) if root, else z^(p - 2) = 1/z. r must not be z. */
static void fe_power(fe r, const fe z, int root)
{
    /* r holds z^(2^n - 1); n grows 5, 10, 20, 40, 50, 100, 200, 250. */
    static const uint8_t step[7] = {5, 10, 20, 10, 50, 100, 50};
    fe t, z11, ten, fifty;
    uint32_t i;

    fe_square(t, z);
    fe_square(r, t);
    fe_square(r, r);
    fe_mul(r, r, z);    /* 9 */
    fe_mul(z11, r, t);  /* 11 */
    fe_square(t, z11);
    fe_mul(r, r, t);    /* 31 */
    for (i = 0; i < 7; i++) {
        fe_copy(t, r);
        fe_squares(t, step[i]);
        fe_mul(r, t, i == 3 ? ten : i == 6 ? fifty : r);
        if (i == 0)
            fe_copy(ten, r);
        if (i == 3)
            fe_copy(fifty, r);
    }
    fe_squares(r, root ? 2 : 5);
    fe_mul(r, r, root ? z : z11);
}

/* RFC 8032, 5.1.3, and a refusal of y >= p and of "-0". */
static int decode(point *p, const uint8_t *s)
{
    fe u, v, w, q;
    uint8_t bytes[32];
    uint32_t sign = s[31] >> 7;

    load(p->y, s);
    fe_copy(w, p->y);
    store(bytes, w);
    bytes[31] |= (uint8_t)(sign << 7);
    if (!qul_equal(bytes, s, 32))
        return 0;
    fe_set(p->z, 1);
    fe_square(u, p->y);
    fe_mul(v, u, D);
    fe_sub(u, u, p->z); /* y^2 - 1 */
    v[0] += 1;          /* d y^2 + 1 */
    fe_square(w, v);
    fe_mul(w, w, v);    /* v^3 */
    fe_square(q, w);
    fe_mul(q, q, v);
    fe_mul(q, q, u);    /* u v^7 */
    fe_power(p->x, q, 1);
    fe_mul(p->x, p->x, w);
    fe_mul(p->x, p->x, u);
    fe_square(w, p->x);
    fe_mul(w, w, v);
    fe_sub(q, w, u);
    if (!fe_is_zero(q)) {
        fe_add(q, w, u);
        if (!fe_is_zero(q))
            return 0;
        fe_mul(p->x, p->x, ROOT);
    }
    fe_copy(w, p->x);
    store(bytes, w);
    if (sign && fe_is_zero(p->x))
        return 0;
    if ((bytes[0] & 1u) != sign) {
        fe_set(q, 0);
        fe_sub(p->x, q, p->x);
    }
    fe_mul(p->t, p->x, p->y);
    return 1;
}

/* The last step of doubling and adding: X = E F, Y = G H, Z = F G, T = E H; a doubling reads no T. */
static void finish(point *p, const fe e, const fe f, const fe g, const fe h, int t)
{
    fe_mul(p->x, e, f);
    fe_mul(p->y, g, h);
    fe_mul(p->z, f, g);
    if (t)
        fe_mul(p->t, e, h);
}

/* dbl-2008-hwcd for a = -1 (Hisil, Wong, Carter, Dawson 2008). */
static void twice(point *p, int t)
{
    fe a, b, e, g;

    fe_square(a, p->x);
    fe_square(b, p->y);
    fe_add(e, p->x, p->y);
    fe_square(e, e);
    fe_sub(g, a, b);
    fe_add(a, a, b); /* H */
    fe_sub(e, a, e);
    fe_square(b, p->z);
    fe_add(b, b, b);
    fe_add(b, b, g); /* F, a sum of four */
    fe_carry(b);
    finish(p, e, b, g, a, t);
}

/* p = p + q, or p - q if minus; add-2008-hwcd-3. z2 = 0 stands for Z = 1. */
static void add(point *p, const fe sum, const fe diff, const fe t2d, const int32_t *z2, int minus, int t)
{
    fe a, b, c, d;

    fe_sub(a, p->y, p->x);
    fe_add(b, p->y, p->x);
    fe_mul(a, a, minus ? sum : diff);
    fe_mul(b, b, minus ? diff : sum);
    fe_mul(c, p->t, t2d);
    if (z2)
        fe_mul(d, p->z, z2);
    else
        fe_add(d, p->z, p->z);
    fe_copy(p->t, b);
    fe_sub(b, b, a);      /* E */
    fe_add(a, p->t, a);   /* H */
    fe_copy(p->t, d);
    if (minus) {
        fe_add(d, d, c);  /* F */
        fe_sub(c, p->t, c);
    } else {
        fe_sub(d, d, c);
        fe_add(c, p->t, c);
    }
    finish(p, b, d, c, a, t);
}

static void cache(cached *c, const point *p)
{
    fe_add(c->sum, p->y, p->x);
    fe_sub(c->diff, p->y, p->x);
    fe_mul(c->t2d, p->t, D2);
    fe_add(c->z2, p->z, p->z);
}

static int below(const uint32_t *a, const uint32_t *b)
{
    uint32_t i = 8;

    while (i--)
        if (a[i] != b[i])
            return a[i] < b[i];
    return 0;
}

static void words(uint32_t *r, const uint8_t *p)
{
    uint32_t i;

    for (i = 0; i < 8; i++, p += 4)
        r[i] = p[0] | ((uint32_t)p[1] << 8) | ((uint32_t)p[2] << 16) | ((uint32_t)p[3] << 24);
}

/* r = the 512-bit number h modulo the group order, bit by bit; r starts as the upper 251 bits. */
static void modulo(uint32_t *r, const uint8_t *h)
{
    uint32_t i, k = 261, c, t;

    words(r, h + 32);
    for (i = 0; i < 8; i++)
        r[i] = (r[i] >> 5) | (i < 7 ? r[i + 1] << 27 : 0);
    while (k--) {
        c = ((uint32_t)h[k >> 3] >> (k & 7)) & 1;
        for (i = 0; i < 8; i++) {
            t = r[i] >> 31;
            r[i] = (r[i] << 1) | c;
            c = t;
        }
        if (!below(r, ORDER)) {
            c = 0;
            for (i = 0; i < 8; i++) {
                uint64_t m = (uint64_t)r[i] - ORDER[i] - c;
                r[i] = (uint32_t)m;
                c = (uint32_t)(m >> 32) & 1;
            }
        }
    }
}

/* Digits d[i], zero or odd and below 2^(w - 1) in size, with sum d[i] 2^i = s; s below 2^253. */
static void digits(int8_t *d, const uint32_t *s, uint32_t w)
{
    uint32_t i = 0, carry = 0, j, v;

    for (j = 0; j < 256; j++)
        d[j] = 0;
    while (i < 256) {
        if (((s[i >> 5] >> (i & 31)) & 1) == carry) {
            i++;
            continue;
        }
        v = carry;
        for (j = 0; j < w && i + j < 256; j++)
            v += ((s[(i + j) >> 5] >> ((i + j) & 31)) & 1) << j;
        carry = v >> (w - 1);
        d[i] = (int8_t)((int32_t)v - (int32_t)(carry << w));
        i += w;
    }
}

/* p = [s] B + [k] p */
static void multiply(point *p, const uint32_t *s, const uint32_t *k)
{
    cached table[1 << (WINDOW_KEY - 2)];
    int8_t ds[256], dk[256];
    point q = *p;
    uint32_t i, n;

    cache(table, p);
    twice(&q, 1);
    for (i = 1; i < 1u << (WINDOW_KEY - 2); i++) {
        cached *c = table + i - 1;
        *p = q;
        add(p, c->sum, c->diff, c->t2d, c->z2, 0, 1);
        cache(table + i, p);
    }
    digits(ds, s, WINDOW_BASE);
    digits(dk, k, WINDOW_KEY);
    fe_set(p->x, 0);
    fe_set(p->y, 1);
    fe_set(p->z, 1);
    fe_set(p->t, 0);
    for (i = 256; i && !ds[i - 1] && !dk[i - 1]; i--)
        ;
    while (i--) {
        twice(p, dk[i] || ds[i]);
        n = (uint32_t)(dk[i] < 0 ? -dk[i] : dk[i]) >> 1;
        if (dk[i])
            add(p, table[n].sum, table[n].diff, table[n].t2d, table[n].z2, dk[i] < 0, ds[i]);
        n = (uint32_t)(ds[i] < 0 ? -ds[i] : ds[i]) >> 1;
        if (ds[i])
            add(p, BASE[n][0], BASE[n][1], BASE[n][2], 0, ds[i] < 0, 0);
    }
}

static int small_order(const point *a)
{
    point p = *a;
    fe t;

    twice(&p, 0);
    twice(&p, 0);
    twice(&p, 0);
    fe_sub(t, p.y, p.z);
    return fe_is_zero(p.x) && fe_is_zero(t);
}

int qul_ed25519_verify(const uint8_t sig[64], const uint8_t key[32], const uint8_t *prefix, uint32_t prefix_n,
                       const uint8_t *message, uint32_t n)
{
    uint32_t s[8], k[8];
    uint8_t sign;
    point p;
    fe x, t;
    qul_sha512_t h;
    uint8_t digest[64];

    words(s, sig + 32);
    if (!below(s, ORDER) || !decode(&p, key) || small_order(&p))
        return 0;
    qul_sha512_start(&h);
    qul_sha512_add(&h, sig, 32);
    qul_sha512_add(&h, key, 32);
    qul_sha512_add(&h, prefix, prefix_n);
    qul_sha512_add(&h, message, n);
    qul_sha512_end(&h, digest);
    modulo(k, digest);
    fe_set(t, 0);
    fe_sub(p.x, t, p.x);
    fe_sub(p.t, t, p.t);
    multiply(&p, s, k);
    fe_power(t, p.z, 0);
    fe_mul(x, p.x, t);
    fe_mul(p.y, p.y, t);
    store(digest, x);
    sign = (uint8_t)(digest[0] << 7);
    store(digest, p.y);
    digest[31] |= sign;
    return qul_equal(digest, sig, 32);
}
