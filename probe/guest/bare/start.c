/* From the multiboot loader's information to probe_run(). */
#include "bare.h"

enum { MULTIBOOT_MAGIC = 0x2BADB002, HAS_COMMAND_LINE = 1 << 2, HAS_MEMORY_MAP = 1 << 6, USABLE = 1 };
enum { REGION = 4 << 20 }; /* well above the program, which ends in the second MiB */

struct multiboot {
    u32 flags, mem_lower, mem_upper, boot_device, command_line, mods_count, mods_addr, syms[4];
    u32 mmap_length, mmap_addr;
};

struct mmap_entry {
    u32 size;
    u64 base, length;
    u32 type;
} __attribute__((packed));

void probe_main(u32 magic, const struct multiboot *info);

/* The usable RAM from REGION on, as far as 32 bits reach below the PCI hole. */
static struct region usable_ram(const struct multiboot *info)
{
    struct region region = {(u8 *)REGION, 0};
    u32 at = info->mmap_addr, end = at + info->mmap_length;

    while ((info->flags & HAS_MEMORY_MAP) && at < end) {
        const struct mmap_entry *entry = (const struct mmap_entry *)at;
        u64 top = entry->base + entry->length;
        if (entry->type == USABLE && entry->base <= REGION && top > REGION)
            region.length = (u32)(top > 0xC0000000u ? 0xC0000000u : top) - REGION;
        at += entry->size + 4;
    }
    return region;
}

void probe_main(u32 magic, const struct multiboot *info)
{
    serial_init();
    if (magic == MULTIBOOT_MAGIC)
        probe_run(info->flags & HAS_COMMAND_LINE ? (const char *)info->command_line : "", usable_ram(info));
    for (;;)
        irq_wait();
}
