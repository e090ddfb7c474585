/* virtio-blk over PCI, the modern (1.0) interface only.
 *
 * One code path for all: transitional devices (on pc, and on q35's root bus) offer it beside the legacy
 * ports, and behind a PCIe root port it is the only one. One request per disk at a time, polled.
 */
#include "bare.h"

enum { QUEUE = 4, STATUS_ACK = 1, STATUS_DRIVER = 2, STATUS_OK = 4, STATUS_FEATURES = 8 };
enum { FEATURE_READ_ONLY = 1u << 5, FEATURE_FLUSH = 1u << 9, FEATURE_HIGH_VERSION_1 = 1u << 0 };
enum { CAP_COMMON = 1, CAP_NOTIFY = 2, CAP_DEVICE = 4 };
enum { DESC_NEXT = 1, DESC_WRITE = 2, NO_INTERRUPT = 1, PENDING = 0xFF };

struct common {
    u32 device_feature_select, device_feature, driver_feature_select, driver_feature;
    u16 config_vector, num_queues;
    u8 status, generation;
    u16 queue_select, queue_size, queue_vector, queue_enable, queue_notify_off;
    u32 queue_desc[2], queue_driver[2], queue_device[2];
};

struct port {
    struct {
        u64 address;
        u32 length;
        u16 flags, next;
    } desc[QUEUE] __attribute__((aligned(16)));
    struct {
        u16 flags, index, ring[QUEUE];
    } avail __attribute__((aligned(4)));
    struct {
        u16 flags, index;
        struct {
            u32 id, length;
        } ring[QUEUE];
    } used __attribute__((aligned(4)));
    struct {
        u32 type, reserved;
        u64 sector;
    } request;
    volatile u8 status;
    bool busy;
    volatile u16 *notify;
};

static struct port ports[DISKS];

struct regions {
    volatile struct common *common;
    volatile u32 *config;
    u32 notify, notify_multiplier;
};

/* Address of what a vendor capability points at, or 0 if its BAR lies out of a 32-bit guest's reach. */
static u32 region(u32 device, u32 capability)
{
    u32 bar = 0x10 + 4 * (pci_read(device, capability + 4) & 0xFF);
    u32 low = pci_read(device, bar);
    if ((low & 1) || ((low & 6) == 4 && pci_read(device, bar + 4)))
        return 0;
    return (low & ~0xFu) + pci_read(device, capability + 8);
}

static bool find_regions(u32 device, struct regions *found)
{
    memset(found, 0, sizeof *found);
    for (u32 cap = pci_capability(device, 0); cap; cap = pci_capability(device, cap)) {
        u32 type = pci_read(device, cap) >> 24;
        if (type == CAP_COMMON)
            found->common = (void *)region(device, cap);
        else if (type == CAP_DEVICE)
            found->config = (void *)region(device, cap);
        else if (type == CAP_NOTIFY) {
            found->notify = region(device, cap);
            found->notify_multiplier = pci_read(device, cap + 16);
        }
    }
    return found->common && found->config && found->notify;
}

static void set_address(volatile u32 *where, const void *address)
{
    where[0] = (u32)address;
    where[1] = 0;
}

/* Without FEATURE_FLUSH QEMU would write through: an fdatasync for every sector. */
static bool negotiate(volatile struct common *common)
{
    common->status = 0;
    common->status = STATUS_ACK;
    common->status = STATUS_ACK | STATUS_DRIVER;
    common->device_feature_select = 0;
    u32 offered = common->device_feature;
    if (offered & FEATURE_READ_ONLY)
        return false;
    common->driver_feature_select = 0;
    common->driver_feature = offered & FEATURE_FLUSH;
    common->driver_feature_select = 1;
    common->driver_feature = FEATURE_HIGH_VERSION_1;
    common->status = STATUS_ACK | STATUS_DRIVER | STATUS_FEATURES;
    return common->status & STATUS_FEATURES;
}

static void attach(u32 device, u32 id)
{
    struct regions at;
    u32 index = the_disks.count;

    if (id != 0x10011AF4 && id != 0x10421AF4) /* transitional, modern */
        return;
    if (index == DISKS || !find_regions(device, &at))
        return;
    pci_write(device, 0x04, pci_read(device, 0x04) | 0x406); /* memory, bus master, no INTx */
    if (!negotiate(at.common))
        return;

    struct port *port = &ports[index];
    at.common->queue_select = 0;
    at.common->queue_size = QUEUE;
    set_address(at.common->queue_desc, port->desc);
    set_address(at.common->queue_driver, &port->avail);
    set_address(at.common->queue_device, &port->used);
    port->avail.flags = NO_INTERRUPT;
    port->notify = (void *)(at.notify + at.common->queue_notify_off * at.notify_multiplier);
    at.common->queue_enable = 1;
    at.common->status = STATUS_ACK | STATUS_DRIVER | STATUS_FEATURES | STATUS_OK;
    the_disks.disk[index].capacity = (u64)at.config[1] << 32 | at.config[0];
    the_disks.disk[index].index = index;
    the_disks.count++;
}

void virtio_init(void) { pci_scan(attach); }

static void describe(struct port *port, u32 slot, const void *address, u32 length, u16 flags)
{
    port->desc[slot].address = (u32)address;
    port->desc[slot].length = length;
    port->desc[slot].flags = flags;
    port->desc[slot].next = (u16)(slot + 1);
}

void virtio_submit(u32 index, enum transfer what, u64 sector)
{
    struct port *port = &ports[index];
    struct disk *disk = &the_disks.disk[index];
    u32 slot = 1;

    port->request.type = what;
    port->request.sector = what == TRANSFER_FLUSH ? 0 : sector;
    port->status = PENDING;
    port->busy = true;
    describe(port, 0, &port->request, 16, DESC_NEXT);
    if (what == TRANSFER_READ)
        describe(port, slot++, disk->in, SECTOR, DESC_NEXT | DESC_WRITE);
    else if (what == TRANSFER_WRITE)
        describe(port, slot++, disk->out, SECTOR, DESC_NEXT);
    describe(port, slot, (const void *)&port->status, 1, DESC_WRITE);
    port->avail.ring[port->avail.index % QUEUE] = 0;
    barrier();
    port->avail.index++;
    barrier();
    *port->notify = 0;
}

static bool done(struct port *port)
{
    volatile u16 *used = &port->used.index;
    if (port->busy && *used == port->avail.index)
        port->busy = false;
    return !port->busy;
}

bool virtio_ok(u32 index) { return ports[index].status == 0; }

/* Waits as long as it takes: a guest does not get its disk back by giving up. */
bool virtio_finish_all(void)
{
    struct wait wait = wait_start();
    bool good = true;

    for (u32 i = 0; i < the_disks.count; i++) {
        while (!done(&ports[i]))
            wait_turn(&wait);
        good &= virtio_ok(i);
    }
    barrier();
    u32 us = wait_us(&wait);
    if (us > the_disks.longest_us)
        the_disks.longest_us = us;
    return good;
}
