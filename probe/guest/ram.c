/* Keeps RAM dirty at a set rate, and proves that every page still holds what was last written to it. */
#include "probe.h"

enum { PAGE = 4096, PAGES_PER_MIB = 256, STRIDE = 16 };

struct ram the_ram;
static u8 *start;
static u32 next_page, generation, pages_per_s, credit;

void ram_init(struct region region, u32 mib, u32 mib_per_s)
{
    u32 pages = region.length / PAGE;

    start = region.start;
    the_ram.pages = mib * PAGES_PER_MIB < pages ? mib * PAGES_PER_MIB : pages;
    pages_per_s = the_ram.pages ? mib_per_s * PAGES_PER_MIB : 0;
}

static u32 pattern(u32 page, u32 generation_of_page)
{
    return (page + 1) * 2654435761u ^ generation_of_page * 40503u;
}

/* One word in every cache line: a page travels whole, so this is enough to see an old copy of it. */
static void renew(u32 page)
{
    volatile u32 *word = (volatile u32 *)(start + page * PAGE);
    u32 old = pattern(page, generation - 1), new = pattern(page, generation), bad = 0;

    for (u32 i = 0; i < PAGE / 4; i += STRIDE) {
        bad |= word[i] ^ (old + i);
        word[i] = new + i;
    }
    the_ram.bad += generation && bad; /* the first round finds whatever was there */
}

void ram_step(u32 tick_us)
{
    u64 due = credit + (u64)pages_per_s * tick_us;
    u32 pages = (u32)divide(due, 1000000);

    credit = (u32)(due - (u64)pages * 1000000);
    while (pages--) {
        renew(next_page);
        if (++next_page == the_ram.pages) {
            next_page = 0;
            generation++;
        }
    }
}
