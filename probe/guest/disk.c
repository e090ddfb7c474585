/* Numbered sectors in a ring on every disk, and a header that names the newest one.
 *
 * The header is written only after the data write has completed, so at any moment the ring holds the
 * header's sequence number, or one more. A volume that shows anything else has lost a write.
 */
#include "probe.h"

enum { BASE = 2048, SMALL_BASE = 2, SMALLEST_RING = 8, WORDS = SECTOR / 4 };

struct record {
    char magic[8];
    u64 sequence, tick, boot_id, tpm;
    u32 index, ring;
    u64 base;
    u32 filler[WORDS - 15], crc; /* the filler makes every byte of the sector depend on the sequence */
};
_Static_assert(sizeof(struct record) == SECTOR, "a record is one sector");

struct disks the_disks;
static const char data_magic[] = "HPDATA01", head_magic[] = "HPHEAD01";
static u64 walk; /* the older sector to look at next, counted back from the newest */

static void compose(struct disk *disk, const char *magic, u64 tick)
{
    struct record *record = (struct record *)disk->out;
    memcpy(record->magic, magic, sizeof record->magic);
    record->sequence = disk->sequence + 1;
    record->tick = tick;
    record->boot_id = the_clock.boot_id;
    record->tpm = the_tpm.present ? the_tpm.value : ~0ull;
    record->index = disk->index;
    record->ring = disk->ring;
    record->base = disk->base;
    for (u32 i = 0; i < WORDS - 15; i++)
        record->filler[i] = (u32)record->sequence * 2654435761u + i;
    record->crc = crc32(record, SECTOR - 4);
}

static bool valid(const struct disk *disk, const char *magic)
{
    const struct record *record = (const struct record *)disk->in;
    return !memcmp(record->magic, magic, sizeof record->magic) && record->crc == crc32(record, SECTOR - 4) &&
           record->index == disk->index;
}

static u64 slot(const struct disk *disk, u64 sequence)
{
    return disk->base + sequence - divide(sequence, disk->ring) * disk->ring;
}

static bool read_one(u32 index, u64 sector)
{
    virtio_submit(index, TRANSFER_READ, sector);
    bool good = virtio_finish_all();
    the_disks.errors += !good;
    return good;
}

/* Takes up the ring that an earlier boot left, whatever size it has; otherwise lays out a new one. */
static void take_up(struct disk *disk, u32 wanted_ring)
{
    const struct record *found = (const struct record *)disk->in;
    bool roomy = disk->capacity >= BASE + wanted_ring;

    disk->base = roomy ? BASE : SMALL_BASE;
    disk->ring = wanted_ring;
    if (disk->capacity < disk->base + wanted_ring)
        disk->ring = (u32)disk->capacity - SMALL_BASE;
    if (!read_one(disk->index, disk->base - 1) || !valid(disk, head_magic))
        return;
    disk->ring = found->ring;
    disk->sequence = found->sequence;
    disk->noted_tpm = found->tpm;
    if (!read_one(disk->index, slot(disk, disk->sequence)) || !valid(disk, data_magic) ||
        found->sequence != disk->sequence)
        the_disks.lost++;
    /* The guest may have been killed between data and header: the data write counts. */
    if (read_one(disk->index, slot(disk, disk->sequence + 1)) && valid(disk, data_magic) &&
        found->sequence == disk->sequence + 1) {
        disk->sequence++;
        disk->noted_tpm = found->tpm;
    }
}

void disk_init(u32 wanted_ring)
{
    virtio_init();
    if (wanted_ring < SMALLEST_RING)
        wanted_ring = SMALLEST_RING;
    /* Disks too small to hold a ring are left alone; they must come last, as the count is cut there. */
    for (u32 i = 0; i < the_disks.count; i++)
        if (the_disks.disk[i].capacity < SMALL_BASE + SMALLEST_RING)
            the_disks.count = i;
    for (u32 i = 0; i < the_disks.count; i++)
        take_up(&the_disks.disk[i], wanted_ring);
}

/* Reads the same distance back from the newest sector on every disk and compares. */
static void check_back(u64 back)
{
    bool asked[DISKS];

    for (u32 i = 0; i < the_disks.count; i++) {
        struct disk *disk = &the_disks.disk[i];
        asked[i] = disk->sequence > back && back < disk->ring;
        if (asked[i])
            virtio_submit(i, TRANSFER_READ, slot(disk, disk->sequence - back));
    }
    the_disks.errors += !virtio_finish_all();
    for (u32 i = 0; i < the_disks.count; i++) {
        struct disk *disk = &the_disks.disk[i];
        const struct record *found = (const struct record *)disk->in;
        if (asked[i] && virtio_ok(i))
            the_disks.lost += !valid(disk, data_magic) || found->sequence != disk->sequence - back;
    }
}

/* One more sector on every disk, side by side. A number moves on only when both writes ended well.
 * First a look at the last one: so every write is read back, and the last before a pause right behind it. */
void disk_step(u64 tick)
{
    bool good[DISKS];

    check_back(0);
    for (u32 i = 0; i < the_disks.count; i++) {
        struct disk *disk = &the_disks.disk[i];
        compose(disk, data_magic, tick);
        virtio_submit(i, TRANSFER_WRITE, slot(disk, disk->sequence + 1));
    }
    the_disks.errors += !virtio_finish_all();
    for (u32 i = 0; i < the_disks.count; i++) {
        struct disk *disk = &the_disks.disk[i];
        good[i] = virtio_ok(i);
        if (!good[i])
            continue;
        compose(disk, head_magic, tick);
        virtio_submit(i, TRANSFER_WRITE, disk->base - 1);
    }
    the_disks.errors += !virtio_finish_all();
    for (u32 i = 0; i < the_disks.count; i++)
        the_disks.disk[i].sequence += good[i] && virtio_ok(i);
}

/* The newest sector, and one older one; over time the walk visits the whole ring. */
void disk_check(void)
{
    if (!the_disks.count)
        return;
    check_back(0);
    /* One less than the ring: the oldest slot may hold the next number after a crash or an error. */
    walk = walk + 1 < the_disks.disk[0].ring - 1 && walk + 1 < the_disks.disk[0].sequence ? walk + 1 : 1;
    check_back(walk);
}

void disk_flush(void)
{
    for (u32 i = 0; i < the_disks.count; i++)
        virtio_submit(i, TRANSFER_FLUSH, 0);
    the_disks.errors += !virtio_finish_all();
}
