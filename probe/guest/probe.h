/* The probe guest: what its parts may use of each other. See ../README.md for what it prints. */
#ifndef PROBE_H
#define PROBE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t s64;

/* ---- ports and processor ------------------------------------------------------------------- */
static inline void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static inline void out16(u16 port, u16 value) { __asm__ volatile("outw %0, %1" ::"a"(value), "Nd"(port)); }
static inline void out32(u16 port, u32 value) { __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port)); }
static inline u8 in8(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static inline u16 in16(u16 port)
{
    u16 value;
    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static inline u32 in32(u16 port)
{
    u32 value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static inline u64 read_tsc(void)
{
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}
static inline void barrier(void) { __sync_synchronize(); }

/* ---- text.c: strings, numbers, checksums (there is no libc and no 64-bit division) ---------- */
u64 divide(u64 number, u32 by);
void *memcpy(void *to, const void *from, size_t length); /* bare/memory.c, or libc */
void *memset(void *to, int value, size_t length);
int memcmp(const void *a, const void *b, size_t length);
void crc32_init(void);
u32 crc32(const void *data, size_t length);
u32 option(const char *command_line, const char *key, u32 otherwise);
void line_start(const char *start);
void line_text(const char *text);
void line_number(u64 value);
void line_hex(u64 value, int digits);
void line_padded(u32 value, int digits);
void line_key(const char *key, u64 value);
void line_send(void); /* appends the checksum and prints */

/* ---- clock.c: TSC time, the longest gap, and pauses found through the CMOS clock ------------- */
struct clock {
    u32 tsc_khz;
    u64 boot_id;            /* seconds since 1970 << 16 | noise: sorts by second of boot */
    u64 epoch_s;            /* CMOS time of the last edge, seconds since 1970 */
    u32 gap_us;             /* longest TSC gap between two polls since the last line */
    u32 pause_us;           /* longest pause since the last line: CMOS went on, TSC did not */
    u32 max_gap_us;         /* longest of both since boot */
    bool jumped;            /* a gap over 5 ms or a pause was seen; the main loop clears it */
};
extern struct clock the_clock;
void clock_init(void);
void clock_start(u32 period_us); /* from here on gaps count */
void clock_poll(void);           /* call at every turn of every waiting loop */
u64 clock_us(u64 tsc_ticks);
u64 clock_ticks(u32 us);
void clock_line_done(void);

/* Waits a little by spinning (most devices answer at once), then asleep. */
struct wait {
    u64 start;
};
struct wait wait_start(void);
void wait_turn(const struct wait *wait);
u32 wait_us(const struct wait *wait);

/* ---- tpm.c --------------------------------------------------------------------------------- */
struct tpm {
    bool present, fresh;    /* fresh: the counter did not exist at boot */
    u64 value;              /* the last value known to be written */
    u32 lost, errors, longest_us;
};
extern struct tpm the_tpm;
void tpm_init(void);
void tpm_step(void);

/* ---- disk.c ------------------------------------------------------------------------------- */
enum { DISKS = 4, SECTOR = 512 };
struct disk {
    u64 capacity, base, sequence; /* sectors, sector, newest write that is known to be done */
    u64 noted_tpm;                /* TPM value that the newest sector found at boot speaks of */
    u32 index, ring;
    u8 out[SECTOR], in[SECTOR];
};
struct disks {
    u32 count, lost, errors, longest_us;
    struct disk disk[DISKS];
};
extern struct disks the_disks;
void disk_init(u32 wanted_ring);
void disk_step(u64 tick);
void disk_check(void);
void disk_flush(void);

/* ---- ram.c --------------------------------------------------------------------------------- */
struct ram {
    u32 bad, pages;
};
extern struct ram the_ram;
struct region {
    u8 *start;
    u32 length; /* bytes */
};
void ram_init(struct region region, u32 mib, u32 mib_per_s);
void ram_step(u32 tick_us);

/* ---- main.c -------------------------------------------------------------------------------- */
extern u64 tick;
void probe_run(const char *command_line, struct region ram); /* returns when the power button was pressed */

/* ---- the platform: bare/ on the naked machine, linux/ above a kernel ------------------------- */
void serial_send(const char *text, size_t length);

void irq_init(u32 period_us);
void irq_wait(void); /* sleeps until the next interrupt of a periodic timer */

void virtio_init(void); /* fills the_disks: count, and capacity and index of each */
enum transfer { TRANSFER_READ = 0, TRANSFER_WRITE = 1, TRANSFER_FLUSH = 4 };
void virtio_submit(u32 index, enum transfer what, u64 sector); /* to or from in[], out[] of that disk */
bool virtio_finish_all(void);                                  /* true if all that was submitted ended well */
bool virtio_ok(u32 index);

bool tpm_connect(void);                               /* false without a TPM */
bool tpm_transmit(u8 *message, u32 size, u32 room);   /* the response replaces the command */

void power_init(void);
bool power_pressed(void);
void power_off(void);

#endif
