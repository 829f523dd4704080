/* Ed25519 verification (RFC 8032, 5.1.7), ours. Numbers modulo p = 2^255 - 19 are eight 32-bit words, least significant
 * first, below 2^256 and not fully reduced unless said. Curve points are (X : Y : Z : T), x = X/Z, y = Y/Z, T = XY/Z.
 * The two scalar multiplications share their doublings (Straus), over signed windows of odd digits. */
#include "qul_crypto.h"

typedef uint32_t fe[8];
typedef struct {
    fe x, y, z, t;
} point;
typedef struct {
    fe sum, diff, t2d, z2; /* Y + X, Y - X, 2 d T, 2 Z */
} cached;

#define WINDOW_KEY 4
#define WINDOW_BASE 5

/* d, 2 d, a square root of -1, and y + x, y - x, 2 d x y of 1, 3, ..., 15 times the base point. */
static const fe D = {0x135978a3u, 0x75eb4dcau, 0x4141d8abu, 0x00700a4du, 0x7779e898u, 0x8cc74079u, 0x2b6ffe73u,
    0x52036ceeu};
static const fe D2 = {0x26b2f159u, 0xebd69b94u, 0x8283b156u, 0x00e0149au, 0xeef3d130u, 0x198e80f2u,
    0x56dffce7u, 0x2406d9dcu};
static const fe ROOT = {0x4a0ea0b0u, 0xc4ee1b27u, 0xad2fe478u, 0x2f431806u, 0x3dfbd7a7u, 0x2b4d0099u,
    0x4fc1df0bu, 0x2b832480u};
static const fe BASE[8][3] = {
    {{0xf58c3b85u, 0x2fbc93c6u, 0xfb8c0e19u, 0xcf932dc6u, 0x643d42c2u, 0x270b4898u, 0x33d4ba65u, 0x07cf9d3au},
     {0xd740913eu, 0x9d103905u, 0xd140beb3u, 0xfd399f05u, 0x688f8a09u, 0xa5c18434u, 0x98f81267u, 0x44fd2f92u},
     {0x877aaa68u, 0xabc91205u, 0xccaac49eu, 0x26d9e823u, 0xdd43598cu, 0x5a1b7dcbu, 0x9f0c65a8u, 0x6f117b68u}},
    {{0x4cee9730u, 0xaf25b0a8u, 0xe8864b8au, 0x025a8430u, 0x9f016732u, 0xc11b5002u, 0x9a80f8f4u, 0x7a164e1bu},
     {0xa4fcd265u, 0x56611fe8u, 0xe5c1ba7du, 0x3bd353fdu, 0x214bd6bdu, 0x8131f31au, 0x555bda62u, 0x2ab91587u},
     {0x0dd0d889u, 0x14ae933fu, 0x1c35da62u, 0x58942322u, 0x8cf2db4cu, 0xd170e545u, 0x12b9b4c6u, 0x5a2826afu}},
    {{0x08a5bb33u, 0xa212bc44u, 0xc75eed02u, 0x8d5048c3u, 0x5abfec44u, 0xdd1beb0cu, 0x46e206ebu, 0x2945ccf1u},
     {0xa447d6bau, 0x7f9182c3u, 0x4b2729b7u, 0xd50014d1u, 0xb864a087u, 0xe33cf11cu, 0xeb1b55f3u, 0x154a7e73u},
     {0x812a8285u, 0xbcbbdbf1u, 0xd0bdd1fcu, 0x270e0807u, 0x1bbda72du, 0xb41b670bu, 0x6b3bb69au, 0x43aabe69u}},
    {{0x944ea3bfu, 0x6b1a5cd0u, 0xb39dc0d2u, 0x7470353au, 0x28542e49u, 0x71b25282u, 0x283c927eu, 0x461bea69u},
     {0xaa3221b1u, 0xba6f2c9au, 0x3bba23a7u, 0x6ca02153u, 0x92192c3au, 0x9dea764fu, 0x2e5317e0u, 0x1d6edd5du},
     {0x01b8b3a2u, 0xf1836dc8u, 0x053ea49au, 0xb3035f47u, 0x5877adf3u, 0x529c41bau, 0x6a0f90a7u, 0x7a9fbb1cu}},
    {{0xa6a8632fu, 0x9b2e678au, 0x51bc46c5u, 0xa6509e6fu, 0xc686f5b5u, 0xceb233c9u, 0x8add7f59u, 0x34b9ed33u},
     {0x039d8064u, 0xf36e217eu, 0xf520419bu, 0x98a081b6u, 0xe75eb044u, 0x96cbc608u, 0xfadc9c8fu, 0x49c05a51u},
     {0x9045af1bu, 0x06b4e8bfu, 0xa719d22fu, 0xe2ff83e8u, 0x93d4cf16u, 0xaaf6fc29u, 0x1b008b06u, 0x73c17202u}},
    {{0x8a802adeu, 0x2fbf0084u, 0x02302e27u, 0xe5d9fecfu, 0x17703406u, 0x113e8471u, 0x546d8fafu, 0x4275aae2u},
     {0x49864348u, 0x315f5b02u, 0x77088381u, 0x3ed6b369u, 0x6a8deb95u, 0xa3a07555u, 0x29d5c77fu, 0x18ab5980u},
     {0xfd6089e9u, 0xd82b2cc5u, 0x3282e4a4u, 0x031eb4a1u, 0xb51a8622u, 0x44311199u, 0xb53df948u, 0x3dc65522u}},
    {{0xa2007f6du, 0xbf70c222u, 0xb5bcdedbu, 0xbf84b39au, 0xfb07ba07u, 0x537a0e12u, 0xc346f241u, 0x234fd7eeu},
     {0x327fbf93u, 0x506f013bu, 0x9b776f6bu, 0xaefcebc9u, 0xaaad5968u, 0x9d12b232u, 0x176024a7u, 0x0267882du},
     {0x732ea378u, 0x5360a119u, 0xdf8dd471u, 0x2437e6b1u, 0x91a7e533u, 0xa2ef37f8u, 0xaa097863u, 0x497ba6fdu}},
    {{0x13cfeaa0u, 0x24cecc03u, 0x189c246du, 0x8648c28du, 0xc1f2d4d0u, 0x2dbdbdfau, 0xf12de72bu, 0x61e22917u},
     {0x468ccf0bu, 0x040bcd86u, 0x2a9910d6u, 0xd3829ba4u, 0x07b25192u, 0x75083008u, 0x18d05ebfu, 0x43b5cd42u},
     {0x9bd0b516u, 0x5d9a762fu, 0x373fdeeeu, 0xeb38af4eu, 0x93d64270u, 0x032e5a7du, 0x0ae4d842u, 0x511d6121u}},
};
static const uint32_t ORDER[8] = {0x5cf5d3edu, 0x5812631au, 0xa2f79cd6u, 0x14def9deu, 0x00000000u, 0x00000000u,
    0x00000000u, 0x10000000u};

static void fe_copy(fe r, const fe a)
{
    uint32_t i;

    for (i = 0; i < 8; i++)
        r[i] = a[i];
}

static void fe_set(fe r, uint32_t v)
{
    uint32_t i;

    for (i = 1; i < 8; i++)
        r[i] = 0;
    r[0] = v;
}

/* r = r + v; the carry out of 2^256 comes back as 38, since 2^256 = 38 modulo p. */
static void fe_small(fe r, uint32_t v)
{
    uint32_t i = 0;
    uint64_t c = v;

    while (c) {
        c += r[i];
        r[i] = (uint32_t)c;
        c >>= 32;
        if (++i == 8) {
            i = 0;
            c *= 38;
        }
    }
}

static void fe_add(fe r, const fe a, const fe b)
{
    uint32_t i;
    uint64_t c = 0;

    for (i = 0; i < 8; i++) {
        c += (uint64_t)a[i] + b[i];
        r[i] = (uint32_t)c;
        c >>= 32;
    }
    fe_small(r, (uint32_t)c * 38);
}

/* a - b = a + (2^256 - 1 - b) + 1 - 2^256, and 1 - 2^256 = -37; so a borrow costs 38, which may borrow once more. */
static void fe_sub(fe r, const fe a, const fe b)
{
    uint32_t i, borrow = 0, back;

    for (i = 0; i < 8; i++) {
        uint64_t t = (uint64_t)a[i] - b[i] - borrow;
        r[i] = (uint32_t)t;
        borrow = (uint32_t)(t >> 32) & 1;
    }
    while (borrow) {
        back = 38;
        for (i = 0; i < 8 && back; i++) {
            uint32_t t = r[i];
            r[i] = t - back;
            back = t < back;
        }
        borrow = back;
    }
}

/* c_ : t_ = a * b + t_ + c_ never overflows 64 bits: (2^32 - 1)^2 + 2 (2^32 - 1) = 2^64 - 1. One UMAAL where there is one. */
#define MAC(t_, a_, b_, c_)                                                                                            \
    do {                                                                                                               \
        uint64_t m_ = (uint64_t)(a_) * (b_) + (t_) + (c_);                                                             \
        (t_) = (uint32_t)m_;                                                                                           \
        (c_) = (uint32_t)(m_ >> 32);                                                                                   \
    } while (0)

static void fe_mul(fe r, const fe a, const fe b)
{
    uint32_t t[16], i, c;

    for (i = 0; i < 8; i++)
        t[i] = 0;
    for (i = 0; i < 8; i++) {
        uint32_t *u = t + i, x = b[i];
        c = 0;
        MAC(u[0], a[0], x, c);
        MAC(u[1], a[1], x, c);
        MAC(u[2], a[2], x, c);
        MAC(u[3], a[3], x, c);
        MAC(u[4], a[4], x, c);
        MAC(u[5], a[5], x, c);
        MAC(u[6], a[6], x, c);
        MAC(u[7], a[7], x, c);
        u[8] = c;
    }
    c = 0;
    for (i = 0; i < 8; i++) {
        MAC(t[i], t[i + 8], 38u, c);
        r[i] = t[i];
    }
    fe_small(r, c * 38);
}

static void fe_squares(fe r, uint32_t n)
{
    while (n--)
        fe_mul(r, r, r);
}

/* The one value in 0 .. p - 1. */
static void fe_reduce(fe r)
{
    fe t;
    uint32_t i;

    for (i = 0; i < 2; i++) {
        uint32_t top = r[7] >> 31;
        r[7] &= 0x7fffffffu;
        fe_small(r, top * 19);
    }
    fe_copy(t, r);
    fe_small(t, 19);
    if (t[7] >> 31) {
        t[7] &= 0x7fffffffu;
        fe_copy(r, t);
    }
}

static int fe_is_zero(const fe a)
{
    fe t;
    uint32_t i, d = 0;

    fe_copy(t, a);
    fe_reduce(t);
    for (i = 0; i < 8; i++)
        d |= t[i];
    return d == 0;
}

static void load(fe r, const uint8_t *p)
{
    uint32_t i;

    for (i = 0; i < 8; i++, p += 4)
        r[i] = p[0] | ((uint32_t)p[1] << 8) | ((uint32_t)p[2] << 16) | ((uint32_t)p[3] << 24);
}

/* r = z^(2^252 - 3) if root, else z^(p - 2) = 1/z. r must not be z. */
static void fe_power(fe r, const fe z, int root)
{
    /* r holds z^(2^n - 1); n grows 5, 10, 20, 40, 50, 100, 200, 250. */
    static const uint8_t step[7] = {5, 10, 20, 10, 50, 100, 50};
    fe t, z11, ten, fifty;
    uint32_t i;

    fe_mul(t, z, z);
    fe_mul(r, t, t);
    fe_mul(r, r, r);
    fe_mul(r, r, z);    /* 9 */
    fe_mul(z11, r, t);  /* 11 */
    fe_mul(t, z11, z11);
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
    uint32_t sign = s[31] >> 7, i;

    load(p->y, s);
    p->y[7] &= 0x7fffffffu;
    fe_copy(w, p->y);
    fe_reduce(w);
    for (i = 0; i < 8; i++)
        if (w[i] != p->y[i])
            return 0;
    fe_set(p->z, 1);
    fe_mul(u, p->y, p->y);
    fe_mul(v, u, D);
    fe_sub(u, u, p->z); /* y^2 - 1 */
    fe_small(v, 1);     /* d y^2 + 1 */
    fe_mul(w, v, v);
    fe_mul(w, w, v);    /* v^3 */
    fe_mul(q, w, w);
    fe_mul(q, q, v);
    fe_mul(q, q, u);    /* u v^7 */
    fe_power(p->x, q, 1);
    fe_mul(p->x, p->x, w);
    fe_mul(p->x, p->x, u);
    fe_mul(w, p->x, p->x);
    fe_mul(w, w, v);
    fe_sub(q, w, u);
    if (!fe_is_zero(q)) {
        fe_add(q, w, u);
        if (!fe_is_zero(q))
            return 0;
        fe_mul(p->x, p->x, ROOT);
    }
    fe_reduce(p->x);
    if (sign && fe_is_zero(p->x))
        return 0;
    if ((p->x[0] & 1) != sign) {
        fe_set(q, 0);
        fe_sub(p->x, q, p->x);
    }
    fe_mul(p->t, p->x, p->y);
    return 1;
}

/* The last step of doubling and adding: X = E F, Y = G H, Z = F G, T = E H. */
static void finish(point *p, const fe e, const fe f, const fe g, const fe h)
{
    fe_mul(p->x, e, f);
    fe_mul(p->y, g, h);
    fe_mul(p->z, f, g);
    fe_mul(p->t, e, h);
}

/* dbl-2008-hwcd for a = -1 (Hisil, Wong, Carter, Dawson 2008). */
static void twice(point *p)
{
    fe a, b, e, g;

    fe_mul(a, p->x, p->x);
    fe_mul(b, p->y, p->y);
    fe_add(e, p->x, p->y);
    fe_mul(e, e, e);
    fe_sub(g, a, b);
    fe_add(a, a, b); /* H */
    fe_sub(e, a, e);
    fe_mul(b, p->z, p->z);
    fe_add(b, b, b);
    fe_add(b, b, g); /* F */
    finish(p, e, b, g, a);
}

/* p = p + q, or p - q if minus; add-2008-hwcd-3. z2 = 0 stands for Z = 1. */
static void add(point *p, const fe sum, const fe diff, const fe t2d, const uint32_t *z2, int minus)
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
    finish(p, b, d, c, a);
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

/* r = the 512-bit number h modulo the group order, bit by bit; r starts as the upper 251 bits. */
static void modulo(uint32_t *r, const uint8_t *h)
{
    uint32_t i, k = 261, c, t;

    load(r, h + 32);
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
    twice(&q);
    for (i = 1; i < 1u << (WINDOW_KEY - 2); i++) {
        cached *c = table + i - 1;
        *p = q;
        add(p, c->sum, c->diff, c->t2d, c->z2, 0);
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
        twice(p);
        n = (uint32_t)(dk[i] < 0 ? -dk[i] : dk[i]) >> 1;
        if (dk[i])
            add(p, table[n].sum, table[n].diff, table[n].t2d, table[n].z2, dk[i] < 0);
        n = (uint32_t)(ds[i] < 0 ? -ds[i] : ds[i]) >> 1;
        if (ds[i])
            add(p, BASE[n][0], BASE[n][1], BASE[n][2], 0, ds[i] < 0);
    }
}

static int small_order(const point *a)
{
    point p = *a;
    fe t;

    twice(&p);
    twice(&p);
    twice(&p);
    fe_sub(t, p.y, p.z);
    return fe_is_zero(p.x) && fe_is_zero(t);
}

int qul_ed25519_verify(const uint8_t sig[64], const uint8_t key[32], const uint8_t *prefix, uint32_t prefix_n,
                       const uint8_t *message, uint32_t n)
{
    uint32_t s[8], k[8], i;
    point p;
    fe x, t;
    qul_sha512_t h;
    uint8_t digest[64];

    load(s, sig + 32);
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
    fe_reduce(x);
    fe_reduce(p.y);
    p.y[7] |= (x[0] & 1) << 31;
    load(t, sig);
    for (i = 0; i < 8; i++)
        if (t[i] != p.y[i])
            return 0;
    return 1;
}
