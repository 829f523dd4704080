/* Files of the computer that runs the emulator, by Arm semihosting. A product has a radio or a wire in its place. */
#ifndef FILES_H
#define FILES_H

#include <stdint.h>

/* Bytes read into data; 0 if there is no such file, or it has more than `most` bytes. */
uint32_t file_load(const char *name, uint8_t *data, uint32_t most);
/* 1 iff all bytes were written. */
int file_save(const char *name, const uint8_t *data, uint32_t n);

#endif
