/* What Eva analyses: the record of two models over memory that holds anything. */
#include <stdint.h>
#include "__fc_builtin.h"
#include "stategate_install.h"
static stategate_install slots;
static bool keep(void *user, int place, const void *data, size_t bytes)
{
    (void)user, (void)place, (void)data, (void)bytes;
    return Frama_C_interval(0, 1) != 0;
}
static bool fetch(void *user, int place, void *data, size_t bytes)
{
    (void)user, (void)place;
    Frama_C_make_unknown(data, bytes);
    return Frama_C_interval(0, 1) != 0;
}
int main(void)
{
    slots.read = fetch;
    slots.write = keep;
    (void)stategate_install_boot(&slots);
    Frama_C_show_each_booted(stategate_install_runs(&slots));
    (void)stategate_install_event(&slots, Frama_C_interval(-1, 9),
        Frama_C_unsigned_int_interval(0, UINT32_MAX), Frama_C_interval(0, 1) != 0);
    Frama_C_show_each_decided(stategate_install_target(&slots));
    return 0;
}
