/* What the integrator gives for the flash. Pages are erased to 0xFF; units are programmed once between two erases. */
#ifndef QUL_FLASH_H
#define QUL_FLASH_H

#include <stdint.h>

typedef struct {
    uint32_t page;  /* bytes erased at once: a multiple of 4 and of unit, at least 256 */
    uint32_t unit;  /* bytes programmed at once: 4, 8, 16, 32 or 64 */
    /* Each returns 0, or anything else for a failure. `address` is the driver's own, page or unit aligned;
     * `n` is whole units, all of them erased. */
    int (*erase)(void *ctx, uint32_t address);
    int (*program)(void *ctx, uint32_t address, const uint8_t *data, uint32_t n);
    /* The memory-mapped bytes from `address` on; what was erased or programmed must be seen there at once. */
    const uint8_t *(*read)(void *ctx, uint32_t address);
    void *ctx;
} qul_flash_t;

/* Where things lie, all page aligned. A/B: two slots. In place: slot[0], and the journal. */
typedef struct {
    uint32_t slot[2], slot_pages;
    uint32_t meta[2];             /* one page each; in place: records of slot[0], by turns */
    uint32_t counter[2];          /* one page each */
    uint32_t log, log_pages;      /* in place: at least qul_log_cells() cells */
    uint32_t data;                /* in place: one page */
} qul_map_t;

#endif
