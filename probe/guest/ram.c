/* Keeps RAM dirty at a set rate, and proves that every page still holds what was last written to it. */
#include "probe.h"

enum { REGION = 4 << 20, PAGE = 4096, PAGES_PER_MIB = 256, STRIDE = 16 };

struct mmap_entry {
    u32 size;
    u64 base, length;
    u32 type;
} __attribute__((packed));

struct ram the_ram;
static u32 next_page, generation, pages_per_s, credit;

/* Bytes of usable RAM from REGION on. */
static u32 room(const struct multiboot *info)
{
    u32 at = info->mmap_addr, end = at + info->mmap_length;

    while ((info->flags & 1 << 6) && at < end) {
        const struct mmap_entry *entry = (const struct mmap_entry *)at;
        u64 top = entry->base + entry->length;
        if (entry->type == 1 && entry->base <= REGION && top > REGION)
            return (u32)(top > 0xC0000000u ? 0xC0000000u : top) - REGION;
        at += entry->size + 4;
    }
    return info->mem_upper > 3072 ? info->mem_upper * 1024 - (REGION - (1 << 20)) : 0;
}

void ram_init(const struct multiboot *info, u32 mib, u32 mib_per_s)
{
    u32 pages = room(info) / PAGE;
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
    volatile u32 *word = (volatile u32 *)(REGION + page * PAGE);
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
