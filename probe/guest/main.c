/* The probe guest: ticks, and at each tick whatever is due. */
#include "probe.h"

enum { LONGEST_PERIOD_US = 10000 };

static struct {
    u32 tick_us, line_every, disk_every, disk_ring, disk_flush, tpm_every, dirty_mib, dirty_mib_s;
} options;

u64 tick;

static void read_options(const char *line)
{
    options.tick_us = option(line, "tick_us", 1000);
    options.line_every = option(line, "line_every", 100);
    options.disk_every = option(line, "disk_every", 10);
    options.disk_ring = option(line, "disk_ring", 1024);
    options.disk_flush = option(line, "disk_flush", 0);
    options.tpm_every = option(line, "tpm_every", 50);
    options.dirty_mib = option(line, "dirty_mib", 16);
    options.dirty_mib_s = option(line, "dirty_mib_s", 8);
    if (options.tick_us < 100)
        options.tick_us = 100;
    if (!options.line_every)
        options.line_every = 100;
}

static void put_boot_id(void)
{
    line_text(" boot=");
    line_hex(the_clock.boot_id, 12);
}

static void put_tpm(void)
{
    if (the_tpm.present)
        line_key("tpm", the_tpm.value);
    else
        line_text(" tpm=-");
}

static void put_per_disk(const char *key, size_t member)
{
    line_text(key);
    for (u32 i = 0; i < the_disks.count; i++) {
        if (i)
            line_text(",");
        line_number(*(u64 *)((char *)&the_disks.disk[i] + member));
    }
    if (!the_disks.count)
        line_text("-");
}

static void put_time(void)
{
    u32 second = (u32)(the_clock.epoch_s - divide(the_clock.epoch_s, 86400) * 86400);
    line_text(" rtc=");
    line_padded(second / 3600, 2);
    line_text(":");
    line_padded(second / 60 % 60, 2);
    line_text(":");
    line_padded(second % 60, 2);
}

static void print_boot(void)
{
    line_start("HP boot");
    put_boot_id();
    line_key("v", 1);
    line_key("tick_us", options.tick_us);
    line_key("line_every", options.line_every);
    put_tpm();
    line_key("tpm_fresh", the_tpm.fresh);
    line_key("tpm_err", the_tpm.errors);
    put_per_disk(" disk=", offsetof(struct disk, sequence));
    line_key("disk_lost", the_disks.lost);
    put_per_disk(" disk_tpm=", offsetof(struct disk, noted_tpm));
    line_key("ram_kib", the_ram.pages * 4);
    line_key("tsc_khz", the_clock.tsc_khz);
    line_key("up_ms", divide(read_tsc(), the_clock.tsc_khz));
    put_time();
    line_send();
}

static void print_tick(const char *start)
{
    u32 gap_us = the_clock.gap_us > the_clock.pause_us ? the_clock.gap_us : the_clock.pause_us;

    line_start(start);
    line_number(tick);
    put_boot_id();
    put_tpm();
    line_key("tpm_lost", the_tpm.lost);
    line_key("tpm_err", the_tpm.errors);
    put_per_disk(" disk=", offsetof(struct disk, sequence));
    line_key("disk_lost", the_disks.lost);
    line_key("disk_err", the_disks.errors);
    line_key("ram_bad", the_ram.bad);
    line_key("gap_us", gap_us);
    line_key("pause_us", the_clock.pause_us);
    line_key("max_gap_us", the_clock.max_gap_us);
    line_key("tpm_us", the_tpm.longest_us);
    line_key("disk_us", the_disks.longest_us);
    put_time();
    clock_line_done(); /* before sending: what happens meanwhile belongs to the next line */
    the_tpm.longest_us = the_disks.longest_us = 0;
    line_send();
}

static bool due(u32 every) { return every && divide(tick, every) * every == tick; }

static void step(void)
{
    tick++;
    ram_step(options.tick_us);
    if (due(options.disk_every)) {
        disk_step(tick);
        if (options.disk_flush && due(options.disk_every * options.disk_flush))
            disk_flush();
    }
    if (due(options.tpm_every))
        tpm_step();
    if (due(options.line_every) || the_clock.jumped) {
        the_clock.jumped = false;
        disk_check();
    }
    if (due(options.line_every))
        print_tick("HP tick=");
}

/* Ticks that are late are made up for, one by one: no number is ever skipped. */
static void loop(void)
{
    u64 next = read_tsc();

    while (!power_pressed()) {
        for (clock_poll(); read_tsc() >= next; clock_poll()) {
            step();
            next += clock_ticks(options.tick_us);
        }
        irq_wait();
    }
}

void probe_run(const char *command_line, struct region ram)
{
    u32 period_us;

    crc32_init();
    read_options(command_line);
    period_us = options.tick_us < LONGEST_PERIOD_US ? options.tick_us : LONGEST_PERIOD_US;
    clock_init();
    irq_init(period_us);
    power_init();
    tpm_init();
    disk_init(options.disk_ring);
    ram_init(ram, options.dirty_mib, options.dirty_mib_s);
    print_boot();
    clock_start(period_us);
    loop();
    disk_flush();
    print_tick("HP off tick=");
    power_off();
}
