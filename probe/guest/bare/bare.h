/* What the parts of the bare-metal platform use of each other. */
#ifndef BARE_H
#define BARE_H

#include "../probe.h"

void serial_init(void);

/* `device` is bus << 16 | slot << 11 | function << 8, the form port 0xCF8 wants. */
u32 pci_read(u32 device, u32 offset);
void pci_write(u32 device, u32 offset, u32 value);
void pci_scan(void (*found)(u32 device, u32 id));
u32 pci_capability(u32 device, u32 after); /* offset of the next vendor capability, 0 at the end */

#endif
