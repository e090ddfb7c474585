/* Time as the guest sees it, and the time it did not see.
 *
 * QEMU stops the TSC and the PIT while a VM is paused or on its way; the CMOS clock (-rtc clock=host) goes
 * on. At each second of the CMOS clock its advance is compared with that of the TSC: what is missing in
 * the TSC is a pause. A second that begins within the pause is seen only at its end, so one pause can show
 * in two neighbouring seconds; therefore a pause is reported one second after it was first seen, with
 * both parts added. Where the TSC does go on (a stop under KVM) the same pause appears as a gap.
 */
#include "probe.h"

enum { CMOS_INDEX = 0x70, CMOS_DATA = 0x71, RTC_B = 0x0B };
enum { PIT_CHANNEL2 = 0x42, PIT_COMMAND = 0x43, PIT_GATE = 0x61, PIT_HZ = 1193182 };
enum { CALIBRATION_COUNT = 23864 }; /* 20 ms */
enum { SPIN_US = 60, JUMP_US = 5000, PAUSE_US = 2000, RTC_POLL_US = 300, EDGE_EARLY_US = 150, EDGE_LATE_US = 400 };

struct clock the_clock;

/* A second of the CMOS clock began between the two TSC values. */
struct edge {
    u64 low, high, epoch_s;
};

static bool started;
static u32 period;
static u64 last_poll;                      /* TSC of the last clock_poll() */
static struct edge last_edge, run_start;   /* run_start: the first edge since the last pause */
static u64 rtc_old_at;                     /* TSC of the last look that showed the old second */
static u8 rtc_second;
static s64 pending_us, steady_us;
static bool pending;
static u32 steady;

static u8 cmos(u8 reg)
{
    out8(CMOS_INDEX, reg);
    return in8(CMOS_DATA);
}

static u32 cmos_number(u8 reg)
{
    u8 value = cmos(reg);
    return cmos(RTC_B) & 4 ? value : (value >> 4) * 10u + (value & 0xF);
}

/* Days since 1970-01-01 (Howard Hinnant's days_from_civil, for years from 2000). */
static u32 days(u32 year, u32 month, u32 day)
{
    year -= month <= 2;
    u32 era_year = year - 2000, shifted = month > 2 ? month - 3 : month + 9;
    u32 day_of_era = era_year * 365 + era_year / 4 - era_year / 100 + (153 * shifted + 2) / 5 + day - 1;
    return day_of_era + 11017; /* 2000-03-01 */
}

static u64 cmos_epoch(void)
{
    u64 value, again = 0;
    do { /* until two readings agree: an update may fall between the registers */
        value = again;
        again = (u64)days(2000 + cmos_number(9), cmos_number(8), cmos_number(7)) * 86400 +
                cmos_number(4) * 3600 + cmos_number(2) * 60 + cmos_number(0);
    } while (value != again);
    return value;
}

u64 clock_us(u64 tsc_ticks) { return divide(tsc_ticks * 1000, the_clock.tsc_khz); }
u64 clock_ticks(u32 us) { return divide((u64)us * the_clock.tsc_khz, 1000); }

static s64 signed_us(s64 tsc_ticks)
{
    return tsc_ticks < 0 ? -(s64)clock_us((u64)-tsc_ticks) : (s64)clock_us((u64)tsc_ticks);
}

/* One reading of PIT channel 2 with the TSC around it: the tightest of several, as any may be preempted. */
static u32 pit_read(u64 *tsc)
{
    u32 count = 0;
    u64 best = ~0ull;
    for (int i = 0; i < 8; i++) {
        u64 before = read_tsc();
        out8(PIT_COMMAND, 0x80); /* latch channel 2 */
        u32 low = in8(PIT_CHANNEL2), value = low | (u32)in8(PIT_CHANNEL2) << 8;
        u64 after = read_tsc();
        if (after - before < best) {
            best = after - before;
            count = value;
            *tsc = before + best / 2;
        }
    }
    return count;
}

/* One measurement over about 20 ms, in kHz. */
static u32 measure(void)
{
    u64 start_tsc = 0, end_tsc = 0;
    u16 start, passed;

    out8(PIT_GATE, (in8(PIT_GATE) & ~2) | 1); /* gate on, speaker off */
    out8(PIT_COMMAND, 0xB0);                  /* channel 2, one count down */
    out8(PIT_CHANNEL2, 0xFF);
    out8(PIT_CHANNEL2, 0xFF);
    start = pit_read(&start_tsc);
    do
        passed = (u16)(start - pit_read(&end_tsc));
    while (passed < CALIBRATION_COUNT);
    return (u32)divide(divide((end_tsc - start_tsc) * PIT_HZ, passed), 1000);
}

/* Until two measurements agree: the count wraps after 55 ms, which a starved guest may sleep through.
 * Good to some 50 ppm; the CMOS seconds refine it later. */
static u32 calibrate(void)
{
    u32 rate = measure(), other = 0;
    for (int i = 0; i < 20; i++) {
        other = rate;
        rate = measure();
        u32 apart = rate > other ? rate - other : other - rate;
        if (apart < rate / 2000)
            break;
    }
    return (rate + other) / 2;
}

void clock_init(void)
{
    the_clock.tsc_khz = calibrate();
    the_clock.epoch_s = cmos_epoch();
    the_clock.boot_id = the_clock.epoch_s << 16 | (((u32)read_tsc() >> 4) & 0xFFFF);
}

void clock_start(u32 period_us)
{
    period = period_us;
    rtc_old_at = read_tsc();
    rtc_second = cmos(0);
    last_poll = read_tsc();
    started = true;
}

static void note(u32 *longest, u64 us)
{
    if (us > *longest)
        *longest = us > 0xFFFFFFFFu ? 0xFFFFFFFFu : (u32)us;
    if (us > the_clock.max_gap_us)
        the_clock.max_gap_us = us > 0xFFFFFFFFu ? 0xFFFFFFFFu : (u32)us;
    the_clock.jumped |= us > JUMP_US;
}

static u64 middle(const struct edge *edge) { return edge->low + (edge->high - edge->low) / 2; }
static u32 doubt_us(const struct edge *edge) { return (u32)clock_us((edge->high - edge->low) / 2); }

/* The TSC rate over a run of seconds without a pause; only from sharp edges. */
static void refine(const struct edge *edge)
{
    if (!run_start.epoch_s || doubt_us(&run_start) > 100) {
        run_start = *edge;
        return;
    }
    u32 run_s = (u32)(edge->epoch_s - run_start.epoch_s);
    if (run_s >= 2 && doubt_us(edge) < 100)
        the_clock.tsc_khz = (u32)divide(divide(middle(edge) - middle(&run_start), run_s) + 500, 1000);
}

/* The same amount missing in four seconds running is no pause but another TSC rate (another host). */
static void follow_new_rate(s64 missing_us, u32 doubt)
{
    s64 difference = missing_us - steady_us;
    bool same = difference < 1000 + doubt && difference > -1000 - (s64)doubt;

    steady = same ? steady + 1 : 0;
    steady_us = missing_us;
    if (steady >= 3) {
        the_clock.tsc_khz = (u32)divide((u64)the_clock.tsc_khz * (u64)(1000000 - missing_us), 1000000);
        steady = 0;
    }
}

static void on_edge(const struct edge *edge)
{
    u64 seconds = edge->epoch_s - last_edge.epoch_s;
    u32 doubt = doubt_us(edge) + doubt_us(&last_edge);
    s64 missing_us = (s64)(seconds * 1000000) - signed_us((s64)(middle(edge) - middle(&last_edge)));
    bool jump = missing_us > PAUSE_US + (s64)doubt || missing_us < -PAUSE_US - (s64)doubt;

    if (jump && seconds == 1)
        follow_new_rate(missing_us, doubt);
    else
        steady = 0;
    if (pending) {
        pending_us += missing_us;
        if (pending_us > PAUSE_US)
            note(&the_clock.pause_us, (u64)pending_us);
        pending = false;
        run_start = *edge;
    } else if (jump) {
        pending = true;
        pending_us = missing_us;
        run_start = *edge;
    } else {
        refine(edge);
    }
}

/* One look at the CMOS clock. QEMU computes the second when it is read, so the "update in progress" flag is not
 * asked: QEMU 7.2 keeps it set until its main loop gets round to it, on a busy host milliseconds into the new
 * second (12 guests on two cores: a pause of 3.5 ms that never was). */
static bool rtc_look(void)
{
    u64 before = read_tsc();
    if (cmos(0) == rtc_second) {
        rtc_old_at = before;
        return false;
    }
    struct edge edge = {.low = rtc_old_at, .high = read_tsc()};
    edge.epoch_s = the_clock.epoch_s = cmos_epoch();
    rtc_second = cmos(0);
    rtc_old_at = before;
    if (last_edge.epoch_s && edge.epoch_s > last_edge.epoch_s)
        on_edge(&edge);
    last_edge = edge;
    return true;
}

/* Looks at the CMOS clock now and then; closely when a new second is due before the next interrupt. */
static void rtc_poll(u64 now)
{
    u64 due = middle(&last_edge) + (u64)the_clock.tsc_khz * 1000;

    if (now - rtc_old_at > clock_ticks(RTC_POLL_US) && rtc_look())
        return;
    if (!last_edge.epoch_s || now + clock_ticks(period + EDGE_EARLY_US) < due || now > due)
        return;
    while (read_tsc() < due + clock_ticks(EDGE_LATE_US))
        if (rtc_look())
            return;
}

void clock_poll(void)
{
    if (!started)
        return;
    u64 now = read_tsc();
    note(&the_clock.gap_us, clock_us(now - last_poll));
    last_poll = now;
    rtc_poll(now);
}

void clock_line_done(void)
{
    the_clock.gap_us = 0;
    the_clock.pause_us = 0;
}

struct wait wait_start(void) { return (struct wait){read_tsc()}; }
u32 wait_us(const struct wait *wait) { return (u32)clock_us(read_tsc() - wait->start); }

void wait_turn(const struct wait *wait)
{
    clock_poll();
    if (wait_us(wait) > SPIN_US)
        irq_wait();
    else
        __asm__ volatile("pause");
}
