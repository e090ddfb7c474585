/* The periodic interrupt (PIT channel 0 through the 8259) that lets the guest sleep between ticks.
 *
 * A guest that spins takes a whole host core; twelve of them starve a small machine. The state of PIT
 * and 8259 is part of every machine's migration stream, so the interrupt goes on at the target.
 */
#include "bare.h"

enum { PIC1 = 0x20, PIC2 = 0xA0, PIT_CHANNEL0 = 0x40, PIT_COMMAND = 0x43, PIT_HZ = 1193182, VECTOR = 0x20 };

extern void irq_timer(void), irq_other(void);
extern char fault_stubs[];
void fault(const u32 *frame) __attribute__((noreturn, used));

static struct {
    u16 offset_low, selector;
    u8 zero, type;
    u16 offset_high;
} __attribute__((packed)) idt[48];

static bool ready;

/* A guest whose memory was damaged on the way usually ends here: say so rather than hang. */
void fault(const u32 *frame)
{
    line_start("HP fault boot=");
    line_hex(the_clock.boot_id, 12);
    line_key("tick", tick);
    line_key("vector", frame[0]);
    line_text(" stack=");
    for (int i = 1; i <= 3; i++)
        line_hex(frame[i], 8); /* [error code] eip cs */
    line_send();
    for (;;)
        __asm__ volatile("cli; hlt");
}

static void gate(u32 vector, u32 handler)
{
    idt[vector].offset_low = (u16)handler;
    idt[vector].offset_high = (u16)(handler >> 16);
    idt[vector].selector = 0x08;
    idt[vector].type = 0x8E; /* 32-bit interrupt gate */
}

static void pic_init(void)
{
    const u8 words[4][2] = {{0x11, 0x11}, {VECTOR, VECTOR + 8}, {4, 2}, {1, 1}};
    for (int i = 0; i < 4; i++) {
        out8(i ? PIC1 + 1 : PIC1, words[i][0]);
        out8(i ? PIC2 + 1 : PIC2, words[i][1]);
    }
    out8(PIC1 + 1, 0xFE); /* the timer alone */
    out8(PIC2 + 1, 0xFF);
}

void irq_init(u32 period_us)
{
    const struct {
        u16 limit;
        u32 base;
    } __attribute__((packed)) pointer = {sizeof idt - 1, (u32)idt};
    u32 count = (u32)divide((u64)period_us * PIT_HZ, 1000000);

    for (u32 i = 0; i < 32; i++)
        gate(i, (u32)fault_stubs + 16 * i);
    for (u32 i = 32; i < 48; i++)
        gate(i, (u32)(i == VECTOR ? irq_timer : irq_other));
    __asm__ volatile("lidt %0" ::"m"(pointer));
    pic_init();
    if (count > 0xFFFF)
        count = 0xFFFF;
    out8(PIT_COMMAND, 0x34); /* channel 0, rate generator */
    out8(PIT_CHANNEL0, (u8)count);
    out8(PIT_CHANNEL0, (u8)(count >> 8));
    ready = true;
}

/* An interrupt between the caller's test and the hlt costs one period at most: it is periodic. */
void irq_wait(void)
{
    if (ready)
        __asm__ volatile("sti; hlt; cli" ::: "memory");
}
