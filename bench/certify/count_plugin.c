/* A plugin of QEMU: how many instructions ran when `mark` was called, on stderr, a line a call.
 *
 * What is declared here is a part of qemu-plugin.h, which Debian has in no package. Blocks are
 * counted when they are entered, so a string instruction counts once, however far it repeats.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef struct qemu_plugin_tb block;
typedef void called(unsigned cpu, void *user);
#define API __attribute__((visibility("default")))

extern size_t qemu_plugin_tb_n_insns(const block *);
extern void *qemu_plugin_tb_get_insn(const block *, size_t);
extern const char *qemu_plugin_insn_symbol(const void *);
extern void qemu_plugin_register_vcpu_tb_exec_cb(block *, called *, int flags, void *user);
extern void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*)(uint64_t, block *));

API const int qemu_plugin_version = 1;
static uint64_t instructions;

static void entered(unsigned cpu, void *user)
{
    (void)cpu;
    instructions += (uintptr_t)user;
}

static void marked(unsigned cpu, void *user)
{
    fprintf(stderr, "%llu\n", (unsigned long long)instructions);
    entered(cpu, user);
}

static void translated(uint64_t id, block *b)
{
    (void)id;
    const size_t n = qemu_plugin_tb_n_insns(b);
    const char *symbol = qemu_plugin_insn_symbol(qemu_plugin_tb_get_insn(b, 0));
    const int mark = symbol != NULL && strcmp(symbol, "mark") == 0;
    qemu_plugin_register_vcpu_tb_exec_cb(b, mark ? marked : entered, 0, (void *)(uintptr_t)n);
}

API int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
    (void)info, (void)argc, (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return 0;
}
