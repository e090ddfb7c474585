/* The TPM's command/response buffer (tpm-crb), locality 0, polled. */
#include "bare.h"

enum { LOC_CTRL = 0x08 / 4, INTERFACE = 0x30 / 4, REQUEST = 0x40 / 4, START = 0x4C / 4 };
enum { REQUEST_READY = 1, REQUEST_IDLE = 2, INTERFACE_CRB = 1, TIMEOUT_US = 20 * 1000 * 1000 };

static volatile u32 *const crb = (volatile u32 *)0xFED40000;
static volatile u8 *const data = (volatile u8 *)0xFED40080;

bool tpm_connect(void) { return (crb[INTERFACE] & 0xF) == INTERFACE_CRB; }

static bool cleared(u32 reg)
{
    struct wait wait = wait_start();
    while (crb[reg]) {
        if (wait_us(&wait) > TIMEOUT_US)
            return false;
        wait_turn(&wait);
    }
    return true;
}

bool tpm_transmit(u8 *message, u32 size, u32 room)
{
    crb[LOC_CTRL] = 1; /* ask for the locality; harmless when we have it */
    crb[REQUEST] = REQUEST_READY;
    if (!cleared(REQUEST))
        return false;
    for (u32 i = 0; i < size; i++)
        data[i] = message[i];
    barrier();
    crb[START] = 1;
    if (!cleared(START))
        return false;
    for (u32 i = 0; i < room; i++)
        message[i] = data[i];
    crb[REQUEST] = REQUEST_IDLE;
    return true;
}
