/* The same loop without an operating system: Cortex-M7, vector table, stack, FPU, nothing else.
 *
 * Steps over inputs that lie in flash and hands every output to the debugger (Arm semihosting),
 * which is how qemu-system-arm -M mps2-an500 shows them; a robot would drive its motors here.
 */
#include <stdint.h>
#include <string.h>

#include "stategate.h"

extern uint32_t stack_top, data_start, data_end, data_image, bss_start, bss_end;

static stategate_session session;
static stategate_outputs out;

extern const stategate_inputs recording[], recording_end[];
__asm__(
    ".section .rodata\n.balign 64\n.global recording\nrecording:\n.incbin \"inputs.bin\"\n"
    ".global recording_end\nrecording_end:\n.previous\n");

/* Semihosting for AArch32 and AArch64, ARM IHI 0100: operation in r0, its arguments at r1. */
static int debugger(int operation, const void *arguments)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void robot(void)
{
    static const char name[] = "outputs.bin";
    const uint32_t open[] = {(uint32_t)(uintptr_t)name, 5, sizeof name - 1}; /* "wb" */
    const uint32_t file = (uint32_t)debugger(0x01, open);
    const bool ready = stategate_init(&session) == STATEGATE_OK;
    for (const stategate_inputs *in = recording; ready && in < recording_end; ++in) {
        if (stategate_step(&session, in, &out) < 0) {
            break;
        }
        const uint32_t write[] = {file, (uint32_t)(uintptr_t)&out, sizeof out};
        debugger(0x05, write);
    }
    const uint32_t last[] = {
        file, (uint32_t)(uintptr_t)&session.counters, sizeof session.counters};
    debugger(0x05, last);
    debugger(0x02, &file);
    debugger(0x18, (const void *)0x20026); /* stopped: application exit */
}

void reset(void)
{
    memcpy(&data_start, &data_image, (size_t)((char *)&data_end - (char *)&data_start));
    memset(&bss_start, 0, (size_t)((char *)&bss_end - (char *)&bss_start));
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: the FPU */
    __asm__ volatile("dsb\nisb");
    robot();
    for (;;) {
    }
}

static void stuck(void)
{
    for (;;) {
    }
}

__attribute__((section(".vectors"), used)) static const void *const vectors[] = {
    &stack_top, (const void *)reset, (const void *)stuck, (const void *)stuck};
