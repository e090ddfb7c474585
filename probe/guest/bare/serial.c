/* COM1, polled: a character is sent only when the UART has room, so none is lost. */
#include "bare.h"

enum { COM1 = 0x3F8, LINE_STATUS = COM1 + 5, ROOM = 0x20 };

void serial_init(void)
{
    out8(COM1 + 1, 0x00);                           /* no interrupts */
    out8(COM1 + 3, 0x80);                           /* divisor latch */
    out8(COM1 + 0, 1);                              /* 115200 baud */
    out8(COM1 + 1, 0);
    out8(COM1 + 3, 0x03);                           /* 8N1 */
    out8(COM1 + 2, 0x07);                           /* FIFO on and empty */
    out8(COM1 + 4, 0x03);                           /* DTR, RTS */
}

void serial_send(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (!(in8(LINE_STATUS) & ROOM)) {
            /* A full pipe or socket behind the UART: wait asleep, and keep the clock awake. */
            struct wait wait = wait_start();
            while (!(in8(LINE_STATUS) & ROOM))
                wait_turn(&wait);
        }
        out8(COM1, (u8)text[i]);
    }
}
