/* The probe as a program of a Linux guest: the same story, told through real drivers.
 *
 * Stands in for the bare-metal platform: the tty, a timerfd, O_DIRECT block devices, /dev/tpm0. The CMOS clock
 * and the PIT are reached by port, as in the naked guest; nothing else in this guest uses them after boot.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/timerfd.h>
#include <termios.h>
#include <unistd.h>

#include "../probe.h"

enum { RAM_BYTES = 256 << 20 };

static int serial = -1, timer = -1, tpm = -1;
static int disk_file[DISKS];
static bool disk_good[DISKS];
static u8 bounce[SECTOR] __attribute__((aligned(4096))); /* O_DIRECT wants alignment */

void serial_send(const char *text, size_t length)
{
    while (length) {
        ssize_t sent = write(serial, text, length);
        if (sent <= 0)
            continue;
        text += sent;
        length -= (size_t)sent;
    }
}

void irq_init(u32 period_us)
{
    struct itimerspec every = {{0, period_us * 1000}, {0, period_us * 1000}};
    timer = timerfd_create(CLOCK_MONOTONIC, 0);
    timerfd_settime(timer, 0, &every, NULL);
}

void irq_wait(void)
{
    u64 expired;
    if (read(timer, &expired, sizeof expired) < 0)
        usleep(1000);
}

void virtio_init(void)
{
    for (u32 i = 0; i < DISKS; i++) {
        char name[] = "/dev/vda";
        u64 bytes = 0;
        name[7] = (char)('a' + i);
        disk_file[i] = open(name, O_RDWR | O_DIRECT | O_SYNC);
        if (disk_file[i] < 0 || ioctl(disk_file[i], BLKGETSIZE64, &bytes))
            return;
        the_disks.disk[i].capacity = bytes / SECTOR;
        the_disks.disk[i].index = i;
        the_disks.count++;
    }
}

/* One after the other: the kernel's queue is not what this guest is to test. */
void virtio_submit(u32 index, enum transfer what, u64 sector)
{
    struct disk *disk = &the_disks.disk[index];
    struct wait wait = wait_start();
    ssize_t moved = SECTOR;

    if (what == TRANSFER_WRITE) {
        memcpy(bounce, disk->out, SECTOR);
        moved = pwrite(disk_file[index], bounce, SECTOR, (off_t)(sector * SECTOR));
    } else if (what == TRANSFER_READ) {
        moved = pread(disk_file[index], bounce, SECTOR, (off_t)(sector * SECTOR));
        memcpy(disk->in, bounce, SECTOR);
    } else if (fsync(disk_file[index])) {
        moved = -1;
    }
    disk_good[index] = moved == SECTOR;
    clock_poll();
    u32 us = wait_us(&wait);
    if (us > the_disks.longest_us)
        the_disks.longest_us = us;
}

bool virtio_ok(u32 index) { return disk_good[index]; }

bool virtio_finish_all(void)
{
    bool good = true;
    for (u32 i = 0; i < the_disks.count; i++)
        good &= disk_good[i];
    return good;
}

bool tpm_connect(void)
{
    tpm = open("/dev/tpm0", O_RDWR);
    return tpm >= 0;
}

bool tpm_transmit(u8 *message, u32 size, u32 room)
{
    bool good = write(tpm, message, size) == (ssize_t)size && read(tpm, message, room) > 0;
    clock_poll();
    return good;
}

void power_init(void) {}
bool power_pressed(void) { return false; }
void power_off(void) { reboot(RB_POWER_OFF); }

static void open_serial(void)
{
    struct termios raw;
    serial = open("/dev/ttyS0", O_RDWR | O_NOCTTY);
    if (!tcgetattr(serial, &raw)) {
        cfmakeraw(&raw);
        cfsetspeed(&raw, B115200);
        tcsetattr(serial, TCSANOW, &raw);
    }
}

int main(void)
{
    static char command_line[4096];

    open_serial();
    int file = open("/proc/cmdline", O_RDONLY);
    ssize_t length = read(file, command_line, sizeof command_line - 1);
    if (length > 0 && command_line[length - 1] == '\n')
        command_line[length - 1] = 0;
    struct region ram = {mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0),
                         RAM_BYTES};
    if (iopl(3) || ram.start == MAP_FAILED)
        dprintf(serial, "probe: %s\n", strerror(errno));
    else
        probe_run(command_line, ram);
    for (;;)
        pause();
}
