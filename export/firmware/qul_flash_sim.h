/* A flash in memory with power cuts (qul_flash_sim.c); for tests and demonstrations, not for devices. */
#ifndef QUL_FLASH_SIM_H
#define QUL_FLASH_SIM_H

#include "qul_flash.h"

#define QUL_SIM_NEVER 0xffffffffu

typedef struct {
    uint8_t *memory;             /* size bytes; addresses start at 0 */
    uint8_t *used;               /* size / unit bytes: programmed since the last erase */
    uint32_t size, page, unit;
    uint32_t ops;                /* erases and program units begun since the power came on */
    uint32_t cut, torn, seed;    /* the operation at which the power goes; 1 = inside it */
    uint32_t dead, breaches;     /* power is gone; rules broken */
} qul_flash_sim_t;

/* memory, used, size, page and unit are set by the caller. */
void qul_flash_sim_start(qul_flash_sim_t *f, qul_flash_t *driver);
void qul_flash_sim_blank(qul_flash_sim_t *f);
void qul_flash_sim_power(qul_flash_sim_t *f, uint32_t cut, uint32_t torn, uint32_t seed);

#endif
