/* The ACPI power button: QMP system_powerdown ends the guest in order. */
#include "bare.h"

enum { BUTTON = 1 << 8, SLEEP = 1 << 13, PM1_STATUS = 0, PM1_ENABLE = 2, PM1_CONTROL = 4 };

static u16 pm_base;

static void find(u32 device, u32 id)
{
    if (id == 0x71138086 || id == 0x29188086) /* PIIX4 power management (pc), ICH9 LPC bridge (q35) */
        pm_base = (u16)(pci_read(device, 0x40) & 0xFF80);
}

void power_init(void)
{
    pci_scan(find);
    if (pm_base)
        out16(pm_base + PM1_ENABLE, BUTTON); /* QEMU notes the button only if it is enabled */
}

bool power_pressed(void) { return pm_base && in16(pm_base + PM1_STATUS) & BUTTON; }

/* Sleep type 0 is S5 on both chip sets of QEMU. */
void power_off(void)
{
    out16(pm_base + PM1_STATUS, BUTTON);
    out16(pm_base + PM1_CONTROL, SLEEP);
}
