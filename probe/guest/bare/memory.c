/* What gcc expects of a libc even in a freestanding program. */
#include "bare.h"

void *memcpy(void *to, const void *from, size_t length)
{
    u8 *t = to;
    const u8 *f = from;
    while (length--)
        *t++ = *f++;
    return to;
}

void *memset(void *to, int value, size_t length)
{
    u8 *t = to;
    while (length--)
        *t++ = (u8)value;
    return to;
}

int memcmp(const void *a, const void *b, size_t length)
{
    const u8 *x = a, *y = b;
    for (; length--; x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}
