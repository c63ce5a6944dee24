/* What Eva analyses: a black box over memory that holds anything, of steps that answer anything. */
#include <stdint.h>
#include "__fc_builtin.h"
#include "stategate_black_box.h"
static stategate_session session;
static stategate_inputs inputs;
static stategate_outputs outputs;
static stategate_black_box box;
static bool put(void *user, uint64_t at, const void *data, size_t bytes)
{
    (void)user, (void)at, (void)data, (void)bytes;
    return Frama_C_interval(0, 1) != 0;
}
static bool get(void *user, uint64_t at, void *data, size_t bytes)
{
    (void)user, (void)at;
    Frama_C_make_unknown(data, bytes);
    return Frama_C_interval(0, 1) != 0;
}
stategate_result stategate_step(stategate_session *s, const stategate_inputs *in, stategate_outputs *out)
{
    (void)in, (void)out;
    if (s->may_write != NULL) {
        (void)s->may_write(s->user);
    }
    s->parity = Frama_C_unsigned_long_interval(0, UINT64_MAX);
    return (stategate_result)Frama_C_interval(-16, 16);
}
uint64_t stategate_chain(const stategate_session *s, uint64_t chain)
{
    (void)s, (void)chain;
    return Frama_C_unsigned_long_interval(0, UINT64_MAX);
}
static void live(void)
{
    for (int i = 0; i < 2; ++i) {
        (void)stategate_black_box_step(&box, &session, &inputs, &outputs);
    }
    (void)stategate_black_box_flush(&box);
}
int main(void)
{
    const uint64_t bytes = Frama_C_unsigned_long_interval(0, UINT64_MAX);
    box.write = put;
    box.read = get;
    if (Frama_C_interval(0, 1) != 0) {
        if (stategate_black_box_create(&box, bytes, 5u) == STATEGATE_BOX_OK) {
            live();
            Frama_C_show_each_created();
        }
    } else {
        if (stategate_black_box_open(&box, bytes) == STATEGATE_BOX_OK) {
            live();
            Frama_C_show_each_opened();
        }
    }
    return 0;
}
