/* PCI configuration space through ports 0xCF8/0xCFC, which both pc and q35 offer. */
#include "bare.h"

enum { ADDRESS = 0xCF8, DATA = 0xCFC };

u32 pci_read(u32 device, u32 offset)
{
    out32(ADDRESS, 0x80000000u | device | (offset & 0xFC));
    return in32(DATA);
}

void pci_write(u32 device, u32 offset, u32 value)
{
    out32(ADDRESS, 0x80000000u | device | (offset & 0xFC));
    out32(DATA, value);
}

/* Firmware has numbered the buses behind bridges; a bridge tells how far they go. */
void pci_scan(void (*found)(u32 device, u32 id))
{
    u32 last_bus = 0;
    for (u32 bus = 0; bus <= last_bus; bus++)
        for (u32 slot = 0; slot < 32; slot++)
            for (u32 function = 0; function < 8; function++) {
                u32 device = bus << 16 | slot << 11 | function << 8, id = pci_read(device, 0);
                if ((id & 0xFFFF) == 0xFFFF) {
                    if (!function)
                        break;
                    continue;
                }
                u32 type = pci_read(device, 0x0C) >> 16 & 0xFF;
                u32 subordinate = pci_read(device, 0x18) >> 16 & 0xFF;
                if ((type & 0x7F) == 1 && subordinate > last_bus)
                    last_bus = subordinate;
                found(device, id);
                if (!function && !(type & 0x80))
                    break;
            }
}

u32 pci_capability(u32 device, u32 after)
{
    u32 offset = after ? pci_read(device, after) >> 8 & 0xFC : pci_read(device, 0x34) & 0xFC;
    while (offset && (pci_read(device, offset) & 0xFF) != 0x09)
        offset = pci_read(device, offset) >> 8 & 0xFC;
    return offset;
}
