/* SHA-256 and SHA-512 (FIPS 180-4). Both use one table: the constants of SHA-256 are the upper halves of the first
 * constants of SHA-512, for both are the leading bits of the same cube and square roots. */
#include "qul_crypto.h"

/* Fractional bits of the cube roots of the first 80 primes, then of the square roots of the first 8. */
static const uint64_t K[80] = {
    UINT64_C(0x428a2f98d728ae22), UINT64_C(0x7137449123ef65cd), UINT64_C(0xb5c0fbcfec4d3b2f), UINT64_C(0xe9b5dba58189dbbc),
    UINT64_C(0x3956c25bf348b538), UINT64_C(0x59f111f1b605d019), UINT64_C(0x923f82a4af194f9b), UINT64_C(0xab1c5ed5da6d8118),
    UINT64_C(0xd807aa98a3030242), UINT64_C(0x12835b0145706fbe), UINT64_C(0x243185be4ee4b28c), UINT64_C(0x550c7dc3d5ffb4e2),
    UINT64_C(0x72be5d74f27b896f), UINT64_C(0x80deb1fe3b1696b1), UINT64_C(0x9bdc06a725c71235), UINT64_C(0xc19bf174cf692694),
    UINT64_C(0xe49b69c19ef14ad2), UINT64_C(0xefbe4786384f25e3), UINT64_C(0x0fc19dc68b8cd5b5), UINT64_C(0x240ca1cc77ac9c65),
    UINT64_C(0x2de92c6f592b0275), UINT64_C(0x4a7484aa6ea6e483), UINT64_C(0x5cb0a9dcbd41fbd4), UINT64_C(0x76f988da831153b5),
    UINT64_C(0x983e5152ee66dfab), UINT64_C(0xa831c66d2db43210), UINT64_C(0xb00327c898fb213f), UINT64_C(0xbf597fc7beef0ee4),
    UINT64_C(0xc6e00bf33da88fc2), UINT64_C(0xd5a79147930aa725), UINT64_C(0x06ca6351e003826f), UINT64_C(0x142929670a0e6e70),
    UINT64_C(0x27b70a8546d22ffc), UINT64_C(0x2e1b21385c26c926), UINT64_C(0x4d2c6dfc5ac42aed), UINT64_C(0x53380d139d95b3df),
    UINT64_C(0x650a73548baf63de), UINT64_C(0x766a0abb3c77b2a8), UINT64_C(0x81c2c92e47edaee6), UINT64_C(0x92722c851482353b),
    UINT64_C(0xa2bfe8a14cf10364), UINT64_C(0xa81a664bbc423001), UINT64_C(0xc24b8b70d0f89791), UINT64_C(0xc76c51a30654be30),
    UINT64_C(0xd192e819d6ef5218), UINT64_C(0xd69906245565a910), UINT64_C(0xf40e35855771202a), UINT64_C(0x106aa07032bbd1b8),
    UINT64_C(0x19a4c116b8d2d0c8), UINT64_C(0x1e376c085141ab53), UINT64_C(0x2748774cdf8eeb99), UINT64_C(0x34b0bcb5e19b48a8),
    UINT64_C(0x391c0cb3c5c95a63), UINT64_C(0x4ed8aa4ae3418acb), UINT64_C(0x5b9cca4f7763e373), UINT64_C(0x682e6ff3d6b2b8a3),
    UINT64_C(0x748f82ee5defb2fc), UINT64_C(0x78a5636f43172f60), UINT64_C(0x84c87814a1f0ab72), UINT64_C(0x8cc702081a6439ec),
    UINT64_C(0x90befffa23631e28), UINT64_C(0xa4506cebde82bde9), UINT64_C(0xbef9a3f7b2c67915), UINT64_C(0xc67178f2e372532b),
    UINT64_C(0xca273eceea26619c), UINT64_C(0xd186b8c721c0c207), UINT64_C(0xeada7dd6cde0eb1e), UINT64_C(0xf57d4f7fee6ed178),
    UINT64_C(0x06f067aa72176fba), UINT64_C(0x0a637dc5a2c898a6), UINT64_C(0x113f9804bef90dae), UINT64_C(0x1b710b35131c471b),
    UINT64_C(0x28db77f523047d84), UINT64_C(0x32caab7b40c72493), UINT64_C(0x3c9ebe0a15c9bebc), UINT64_C(0x431d67c49c100d4c),
    UINT64_C(0x4cc5d4becb3e42b6), UINT64_C(0x597f299cfc657e2a), UINT64_C(0x5fcb6fab3ad6faec), UINT64_C(0x6c44198c4a475817)
};

static const uint64_t H0[8] = {
    UINT64_C(0x6a09e667f3bcc908), UINT64_C(0xbb67ae8584caa73b), UINT64_C(0x3c6ef372fe94f82b), UINT64_C(0xa54ff53a5f1d36f1),
    UINT64_C(0x510e527fade682d1), UINT64_C(0x9b05688c2b3e6c1f), UINT64_C(0x1f83d9abfb41bd6b), UINT64_C(0x5be0cd19137e2179)
};

#define ROR32(x, n) (((x) >> (n)) | ((x) << (32 - (n))))
#define ROR64(x, n) (((x) >> (n)) | ((x) << (64 - (n))))
#define CH(x, y, z) ((z) ^ ((x) & ((y) ^ (z))))
#define MAJ(x, y, z) (((x) & (y)) | ((z) & ((x) | (y))))

/* One round; the caller renames the eight words instead of moving them. `mix` expands the schedule in a ring of 16. */
#define ROUND(T, S0, S1, a, b, c, d, e, f, g, h, k, wi)                                                                \
    do {                                                                                                               \
        T t_ = (h) + S1(e) + CH(e, f, g) + (k) + (wi);                                                                 \
        (d) += t_;                                                                                                     \
        (h) = t_ + S0(a) + MAJ(a, b, c);                                                                               \
    } while (0)

#define S256_0(x) (ROR32(x, 2) ^ ROR32(x, 13) ^ ROR32(x, 22))
#define S256_1(x) (ROR32(x, 6) ^ ROR32(x, 11) ^ ROR32(x, 25))
#define S512_0(x) (ROR64(x, 28) ^ ROR64(x, 34) ^ ROR64(x, 39))
#define S512_1(x) (ROR64(x, 14) ^ ROR64(x, 18) ^ ROR64(x, 41))

static uint32_t big32(const uint8_t *p)
{
    return ((uint32_t)p[0] << 24) | ((uint32_t)p[1] << 16) | ((uint32_t)p[2] << 8) | p[3];
}

static void put32(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 24);
    p[1] = (uint8_t)(v >> 16);
    p[2] = (uint8_t)(v >> 8);
    p[3] = (uint8_t)v;
}

static void block256(uint32_t *st, const uint8_t *p)
{
    uint32_t w[16];
    uint32_t a = st[0], b = st[1], c = st[2], d = st[3], e = st[4], f = st[5], g = st[6], h = st[7];
    uint32_t i, j;

    for (i = 0; i < 16; i++)
        w[i] = big32(p + 4 * i);
    for (i = 0; i < 64; i += 16) {
        const uint64_t *k = K + i;
        for (j = 0; j < 16; j += 8) {
            const uint32_t *v = w + j;
            const uint64_t *kj = k + j;
#define R(n, a, b, c, d, e, f, g, h)                                                                                   \
    ROUND(uint32_t, S256_0, S256_1, a, b, c, d, e, f, g, h, (uint32_t)(kj[n] >> 32), v[n])
            R(0, a, b, c, d, e, f, g, h);
            R(1, h, a, b, c, d, e, f, g);
            R(2, g, h, a, b, c, d, e, f);
            R(3, f, g, h, a, b, c, d, e);
            R(4, e, f, g, h, a, b, c, d);
            R(5, d, e, f, g, h, a, b, c);
            R(6, c, d, e, f, g, h, a, b);
            R(7, b, c, d, e, f, g, h, a);
#undef R
        }
        if (i < 48) {
            for (j = 0; j < 16; j++) {
                uint32_t x = w[(j + 1) & 15], y = w[(j + 14) & 15];
                w[j] += (ROR32(x, 7) ^ ROR32(x, 18) ^ (x >> 3)) + w[(j + 9) & 15] +
                        (ROR32(y, 17) ^ ROR32(y, 19) ^ (y >> 10));
            }
        }
    }
    st[0] += a;
    st[1] += b;
    st[2] += c;
    st[3] += d;
    st[4] += e;
    st[5] += f;
    st[6] += g;
    st[7] += h;
}

void qul_sha256_start(qul_sha256_t *s)
{
    uint32_t i;

    for (i = 0; i < 8; i++)
        s->h[i] = (uint32_t)(H0[i] >> 32);
    s->total = 0;
}

void qul_sha256_add(qul_sha256_t *s, const uint8_t *data, uint32_t n)
{
    uint32_t fill = s->total & 63;

    s->total += n;
    while (n) {
        if (fill == 0 && n >= 64) {
            block256(s->h, data);
            data += 64;
            n -= 64;
            continue;
        }
        s->buf[fill++] = *data++;
        n--;
        if (fill == 64) {
            block256(s->h, s->buf);
            fill = 0;
        }
    }
}

void qul_sha256_end(qul_sha256_t *s, uint8_t digest[32])
{
    static const uint8_t pad[64] = {0x80};
    uint8_t length[8];
    uint32_t total = s->total, i;

    put32(length, total >> 29);
    put32(length + 4, total << 3);
    qul_sha256_add(s, pad, ((119 - (total & 63)) & 63) + 1);
    qul_sha256_add(s, length, 8);
    for (i = 0; i < 8; i++)
        put32(digest + 4 * i, s->h[i]);
}

void qul_sha256(const uint8_t *data, uint32_t n, uint8_t digest[32])
{
    qul_sha256_t s;

    qul_sha256_start(&s);
    qul_sha256_add(&s, data, n);
    qul_sha256_end(&s, digest);
}

static void block512(uint64_t *st, const uint8_t *p)
{
    uint64_t w[16], v[8];
    uint32_t i, j;

    for (i = 0; i < 16; i++)
        w[i] = ((uint64_t)big32(p + 8 * i) << 32) | big32(p + 8 * i + 4);
    for (i = 0; i < 8; i++)
        v[i] = st[i];
    for (i = 0; i < 80; i++) {
        uint64_t t, u;
        j = i & 15;
        if (i >= 16) {
            uint64_t x = w[(j + 1) & 15], y = w[(j + 14) & 15];
            w[j] += (ROR64(x, 1) ^ ROR64(x, 8) ^ (x >> 7)) + w[(j + 9) & 15] +
                    (ROR64(y, 19) ^ ROR64(y, 61) ^ (y >> 6));
        }
        t = v[7] + S512_1(v[4]) + CH(v[4], v[5], v[6]) + K[i] + w[j];
        u = S512_0(v[0]) + MAJ(v[0], v[1], v[2]);
        v[7] = v[6];
        v[6] = v[5];
        v[5] = v[4];
        v[4] = v[3] + t;
        v[3] = v[2];
        v[2] = v[1];
        v[1] = v[0];
        v[0] = t + u;
    }
    for (i = 0; i < 8; i++)
        st[i] += v[i];
}

void qul_sha512_start(qul_sha512_t *s)
{
    uint32_t i;

    for (i = 0; i < 8; i++)
        s->h[i] = H0[i];
    s->total = 0;
}

void qul_sha512_add(qul_sha512_t *s, const uint8_t *data, uint32_t n)
{
    uint32_t fill = s->total & 127;

    s->total += n;
    while (n--) {
        s->buf[fill++] = *data++;
        if (fill == 128) {
            block512(s->h, s->buf);
            fill = 0;
        }
    }
}

void qul_sha512_end(qul_sha512_t *s, uint8_t digest[64])
{
    static const uint8_t pad[1] = {0x80}, zero[8] = {0};
    uint8_t length[8];
    uint32_t total = s->total, i;

    put32(length, total >> 29);
    put32(length + 4, total << 3);
    qul_sha512_add(s, pad, 1);
    while ((s->total & 127) != 112)
        qul_sha512_add(s, zero, 1);
    qul_sha512_add(s, zero, 8);
    qul_sha512_add(s, length, 8);
    for (i = 0; i < 8; i++) {
        put32(digest + 8 * i, (uint32_t)(s->h[i] >> 32));
        put32(digest + 8 * i + 4, (uint32_t)s->h[i]);
    }
}

int qul_equal(const uint8_t *a, const uint8_t *b, uint32_t n)
{
    uint32_t d = 0;

    while (n--)
        d |= (uint32_t)(*a++ ^ *b++);
    return d == 0;
}
