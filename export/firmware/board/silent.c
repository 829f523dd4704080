/* No console: replace these with your board's own. */
QUL_WEAK void qul_print(const char *text)
{
    (void)text;
}

QUL_WEAK void qul_print_number(uint32_t v)
{
    (void)v;
}

QUL_WEAK void qul_exit(int code)
{
    (void)code;
    for (;;) {
    }
}

QUL_WEAK void qul_tick(void)
{
    qul_exception();
}

void qul_after_main(void)
{
}
