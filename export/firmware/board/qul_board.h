/* What main.c needs from a board. */
#ifndef QUL_BOARD_H
#define QUL_BOARD_H

#include <stdint.h>

/* Text on the console. */
void qul_print(const char *text);
/* An unsigned number in decimal digits on the console. */
void qul_print_number(uint32_t v);
/* The end of the program, with an exit code where someone can see it. Does not return. */
__attribute__((noreturn)) void qul_exit(int code);

#endif
