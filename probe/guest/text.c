/* Strings, numbers and checksums. */
#include "probe.h"

static u32 crc_table[256];
static char line[512];
static size_t line_length;

/* 64 by 32 bit division: gcc would call __udivdi3, which lives in a 32-bit libgcc we do not have. */
u64 divide(u64 number, u32 by)
{
    u32 high = (u32)(number >> 32), low = (u32)number;
    u32 quotient_high = high / by, rest = high % by, quotient_low;

    __asm__("divl %4" : "=a"(quotient_low), "=d"(rest) : "a"(low), "d"(rest), "rm"(by) : "cc");
    return (u64)quotient_high << 32 | quotient_low;
}

/* The CRC-32 of zlib, so that Python checks it with zlib.crc32. */
void crc32_init(void)
{
    for (u32 i = 0; i < 256; i++) {
        u32 value = i;
        for (int bit = 0; bit < 8; bit++)
            value = value & 1 ? value >> 1 ^ 0xEDB88320u : value >> 1;
        crc_table[i] = value;
    }
}

u32 crc32(const void *data, size_t length)
{
    const u8 *byte = data;
    u32 value = ~0u;
    while (length--)
        value = value >> 8 ^ crc_table[(value ^ *byte++) & 0xFF];
    return ~value;
}

/* The number behind "key=" in the command line; the last one wins. */
u32 option(const char *text, const char *key, u32 otherwise)
{
    while (*text) {
        const char *k = key;
        while (*k && *text == *k)
            text++, k++;
        if (!*k && *text == '=') {
            otherwise = 0;
            for (text++; *text >= '0' && *text <= '9'; text++)
                otherwise = otherwise * 10 + (u32)(*text - '0');
        }
        while (*text && *text != ' ')
            text++;
        while (*text == ' ')
            text++;
    }
    return otherwise;
}

static void put(char c)
{
    if (line_length < sizeof line)
        line[line_length++] = c;
}

void line_start(const char *start)
{
    line_length = 0;
    line_text(start);
}

void line_text(const char *text)
{
    while (*text)
        put(*text++);
}

void line_number(u64 value)
{
    char digits[20];
    int n = 0;
    do {
        u64 rest = divide(value, 10);
        digits[n++] = (char)('0' + (u32)(value - rest * 10));
        value = rest;
    } while (value);
    while (n)
        put(digits[--n]);
}

void line_hex(u64 value, int digits)
{
    while (digits--)
        put("0123456789abcdef"[value >> (4 * digits) & 0xF]);
}

void line_padded(u32 value, int digits)
{
    u32 unit = 1;
    for (int i = 1; i < digits; i++)
        unit *= 10;
    for (; unit; unit /= 10)
        put((char)('0' + value / unit % 10));
}

void line_key(const char *key, u64 value)
{
    put(' ');
    line_text(key);
    put('=');
    line_number(value);
}

void line_send(void)
{
    put(' ');
    u32 sum = crc32(line, line_length);
    line_text("crc=");
    line_hex(sum, 8);
    put('\n');
    serial_send(line, line_length);
}
