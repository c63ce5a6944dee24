/* Start of a program on an emulated Cortex-M7: memory, FPU, then main. Reading, writing and exit()
 * are newlib's, by Arm semihosting: qemu-system-arm hands them to its own stdin and stdout. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

extern uint32_t stack_top, data_start, data_end, data_image, bss_start, bss_end;
extern void initialise_monitor_handles(void);
extern int main(int argc, char **argv);

void reset(void);

void reset(void)
{
    memcpy(&data_start, &data_image, (size_t)((char *)&data_end - (char *)&data_start));
    memset(&bss_start, 0, (size_t)((char *)&bss_end - (char *)&bss_start));
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: the FPU */
    __asm__ volatile("dsb\nisb");
    initialise_monitor_handles();
    exit(main(0, (char *[]){NULL}));
}

static void stuck(void)
{
    _Exit(99);
}

/* What crt0 and crti give where there is an operating system. */
void _init(void);
void _init(void)
{
}
void _fini(void);
void _fini(void)
{
}

__attribute__((section(".vectors"), used)) static const void *const vectors[] = {
    &stack_top, (const void *)reset, (const void *)stuck, (const void *)stuck,
    (const void *)stuck, (const void *)stuck, (const void *)stuck};
