/* A keyword spotter on a Cortex-M4: starts, listens to one utterance, takes an update if there is one, listens again.
 *
 * Files, in the place of sensors, radio and flash (see files.h):
 *   flash.bin      the flash; absent = a new device, which gets base.bin at the factory
 *   features.bin   log-mel codes of an utterance, uint8 [H][W], made by prepare.py
 *   update.bin     a signed update, if there is one
 *   receipt.bin    written after an update
 *
 * Exit: 0, or the code of qul_boot() or qul_update() (docs/device.md). The flash driver is the simulated one; a product
 * writes its own erase, program and read (qul_flash.h), and names them in `driver`. */
#include "files.h"
#include "key.h"
#include "model.h"
#include "ota.h"
#include "qul_board.h"
#include "qul_flash_sim.h"
#include "qul_rt.h"
#include "settings.h"

#define PAGE 4096u
#define UNIT 16u
#define SLOT ((SPOTTER_BLOB_BYTES + PAGE - 1u) / PAGE)
#define FLASH_BYTES (PAGE * (2u * SLOT + 5u))
#define UPDATE_MAX (SPOTTER_BLOB_BYTES + 4096u)

static uint8_t flash[FLASH_BYTES] QUL_ALIGNED(16), used[FLASH_BYTES / UNIT];
static uint8_t page[PAGE], update[UPDATE_MAX] QUL_ALIGNED(16), receipt[QUL_RECEIPT];
static int32_t scratch[SPOTTER_SCRATCH_BYTES / 4u + 1u];
static uint8_t features[SPOTTER_INPUT_BYTES];
static float x[SPOTTER_INPUT_BYTES];

static qul_flash_sim_t sim = {flash, used, FLASH_BYTES, PAGE, UNIT, 0, 0, 0, 0, 0, 0};
static qul_flash_t driver;
/* Two slots, a record of two pages for each, a counter. */
static const qul_map_t map = {
    {0, SLOT * PAGE}, SLOT, {2u * SLOT * PAGE, (2u * SLOT + 1u) * PAGE},
    {(2u * SLOT + 2u) * PAGE, (2u * SLOT + 3u) * PAGE}, 0, 0, (2u * SLOT + 4u) * PAGE,
};
static const qul_device_t device = {
    &qul_two_slots, &driver, &map, &spotter_qul_layout, &spotter_qul_model, {DEVICE_CLASS}, &qul_key_TEST, 1,
    qul_ed25519_verify, UPDATE_MAX, page, scratch, sizeof scratch, 0, 0, 0,
};
static qul_state_t state;

static void say(const char *what, uint32_t value, const char *more)
{
    qul_print(what);
    qul_print_number(value);
    qul_print(more);
}

/* The flash as it was when the power went, or a new device. */
static int start(void)
{
    uint32_t i;

    qul_flash_sim_start(&sim, &driver);
    qul_flash_sim_blank(&sim);
    if (file_load("flash.bin", flash, FLASH_BYTES) == FLASH_BYTES) {
        for (i = 0; i < FLASH_BYTES; i++) {
            if (flash[i] != 0xff) {
                used[i / UNIT] = 1;
            }
        }
        return qul_boot(&device, &state);
    }
    if (file_load("base.bin", update, UPDATE_MAX) != SPOTTER_BLOB_BYTES) {
        qul_print("no base.bin for a new device\n");
        return 1;
    }
    qul_print("new device: the first model is written\n");
    return qul_provision(&device, &state, update, 1);
}

/* Preprocessing as in training, codes, inference, class. */
static void listen(void)
{
    uint32_t i;

    if (file_load("features.bin", features, sizeof features) != sizeof features) {
        qul_print("no utterance\n");
        return;
    }
    for (i = 0; i < SPOTTER_INPUT_BYTES; i++) {
        x[i] = ((float)features[i] / DIVISOR - MEAN) / STD;
    }
    spotter_quantize(x, spotter_input());
    spotter_run();
    say("model ", state.sequence, " heard ");
    say("", (uint32_t)spotter_argmax(), "\n");
}

int main(void)
{
    int rc = start();
    uint32_t n;

    if (state.ready) {
        listen();
    }
    n = rc == QUL_DONE || rc == QUL_RECOVERY ? file_load("update.bin", update, UPDATE_MAX) : 0;
    if (n != 0) {
        rc = qul_update(&device, &state, update, n, receipt);
        say("update of ", n, " bytes: ");
        say("code ", (uint32_t)rc, rc == QUL_DONE ? ", installed, the old model is erased\n" : ", refused\n");
        if (!file_save("receipt.bin", receipt, QUL_RECEIPT)) {
            rc = QUL_FLASH;
        }
        if (state.ready) {
            listen();
        }
    }
    return file_save("flash.bin", flash, FLASH_BYTES) ? rc : QUL_FLASH;
}
