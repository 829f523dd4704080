/* SHA-256, SHA-512 (FIPS 180-4) and Ed25519 verification (RFC 8032, 5.1.7). Verify only: no secret is ever handled,
 * nothing here is constant time. Small and tested, not audited: use the platform's own where there is one
 * (qul_update.h, qul_device_t.verify). */
#ifndef QUL_CRYPTO_H
#define QUL_CRYPTO_H

#include <stdint.h>

typedef struct {
    uint32_t h[8];
    uint32_t total;   /* bytes so far; fewer than 2^32 */
    uint8_t buf[64];
} qul_sha256_t;

typedef struct {
    uint64_t h[8];
    uint32_t total;
    uint8_t buf[128];
} qul_sha512_t;

void qul_sha256_start(qul_sha256_t *s);
void qul_sha256_add(qul_sha256_t *s, const uint8_t *data, uint32_t n);
void qul_sha256_end(qul_sha256_t *s, uint8_t digest[32]);
void qul_sha256(const uint8_t *data, uint32_t n, uint8_t digest[32]);

void qul_sha512_start(qul_sha512_t *s);
void qul_sha512_add(qul_sha512_t *s, const uint8_t *data, uint32_t n);
void qul_sha512_end(qul_sha512_t *s, uint8_t digest[64]);

/* 1 iff `sig` is a signature over prefix || message by `key`. S must be below the group order, key and R must be
 * canonical, a key of small order is refused, and the encoding of [S]B - [k]A must equal R byte for byte. */
int qul_ed25519_verify(const uint8_t sig[64], const uint8_t key[32], const uint8_t *prefix, uint32_t prefix_n,
                       const uint8_t *message, uint32_t n);

/* 1 iff equal; n bytes. */
int qul_equal(const uint8_t *a, const uint8_t *b, uint32_t n);

#endif
