/* A counter in the TPM's NV storage, over whatever carries commands: written, read back, and missed if gone. */
#include "probe.h"

enum { NV_INDEX = 0x01500048, OWNER = 0x40000001, PASSWORD = 0x40000009, NV_SIZE = 8 };
/* OWNERWRITE, AUTHWRITE, OWNERREAD, AUTHREAD, NO_DA (a wrong read must never lock the TPM) */
enum { NV_ATTRIBUTES = 0x02060006 };
enum { TAG_PLAIN = 0x8001, TAG_SESSIONS = 0x8002, SHA256 = 0x000B };
enum { STARTUP = 0x144, NV_DEFINE = 0x12A, NV_READ = 0x14E, NV_WRITE = 0x137 };
enum { RC_OK = 0, RC_INITIALIZE = 0x100, RC_NV_UNINITIALIZED = 0x14A, RC_HANDLE = 0x18B, RC_NONE = 0xFFFFFFFF };

struct tpm the_tpm;
static u8 message[128]; /* the command, then the response */
static u32 length;

static void put(u64 value, u32 bytes)
{
    while (bytes--)
        message[length++] = (u8)(value >> (8 * bytes));
}

static u64 get(u32 offset, u32 bytes)
{
    u64 value = 0;
    while (bytes--)
        value = value << 8 | message[offset++];
    return value;
}

static void begin(u16 tag, u32 command)
{
    length = 0;
    put(tag, 2);
    put(0, 4); /* the size, patched when sent */
    put(command, 4);
}

static void put_empty_password(void)
{
    put(9, 4);
    put(PASSWORD, 4);
    put(0, 2); /* nonce */
    put(0, 1); /* attributes */
    put(0, 2); /* the empty password */
}

/* Sends the message; returns the response code, or RC_NONE if the TPM did not answer. */
static u32 run(void)
{
    struct wait wait = wait_start();
    u32 size = length;

    length = 2;
    put(size, 4);
    if (!tpm_transmit(message, size, sizeof message))
        return RC_NONE;
    u32 us = wait_us(&wait);
    if (us > the_tpm.longest_us)
        the_tpm.longest_us = us;
    return (u32)get(6, 4);
}

static u32 define(void)
{
    begin(TAG_SESSIONS, NV_DEFINE);
    put(OWNER, 4);
    put_empty_password();
    put(0, 2); /* the index has no password */
    put(14, 2);
    put(NV_INDEX, 4);
    put(SHA256, 2);
    put(NV_ATTRIBUTES, 4);
    put(0, 2); /* no policy */
    put(NV_SIZE, 2);
    return run();
}

static void begin_nv(u32 command)
{
    begin(TAG_SESSIONS, command);
    put(NV_INDEX, 4); /* authorised by the index itself */
    put(NV_INDEX, 4);
    put_empty_password();
}

static u32 nv_write(u64 value)
{
    begin_nv(NV_WRITE);
    put(NV_SIZE, 2);
    put(value, NV_SIZE);
    put(0, 2); /* offset */
    return run();
}

static u32 nv_read(u64 *value)
{
    begin_nv(NV_READ);
    put(NV_SIZE, 2);
    put(0, 2);
    u32 code = run();
    if (code == RC_OK)
        *value = get(16, NV_SIZE); /* header 10, parameter size 4, buffer size 2 */
    return code;
}

/* Anything but the value we know of is a lost write; a missing index is a lost TPM. */
static void expect(u64 known)
{
    u64 found = 0;
    u32 code = nv_read(&found);
    if (code == RC_HANDLE || code == RC_NV_UNINITIALIZED || (code == RC_OK && found != known))
        the_tpm.lost++;
    else if (code != RC_OK)
        the_tpm.errors++;
}

void tpm_init(void)
{
    the_tpm.present = tpm_connect();
    if (!the_tpm.present)
        return;
    begin(TAG_PLAIN, STARTUP);
    put(0, 2); /* clear */
    u32 code = run();
    the_tpm.errors += code != RC_OK && code != RC_INITIALIZE; /* the firmware may have been first */
    code = nv_read(&the_tpm.value);
    if (code == RC_HANDLE)
        code = define() == RC_OK ? RC_NV_UNINITIALIZED : RC_NONE;
    the_tpm.fresh = code == RC_NV_UNINITIALIZED;
    the_tpm.errors += code != RC_OK && code != RC_NV_UNINITIALIZED;
}

/* Old value still there? Write the next, and read it back. */
void tpm_step(void)
{
    if (!the_tpm.present)
        return;
    if (the_tpm.value || !the_tpm.fresh)
        expect(the_tpm.value);
    if (nv_write(the_tpm.value + 1) != RC_OK) {
        the_tpm.errors++;
        return;
    }
    the_tpm.value++;
    expect(the_tpm.value);
}
